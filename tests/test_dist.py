"""What ``make dist`` refuses. That the wheel works is in ``test_installed.py``; the whole takes minutes."""

import pytest

from tools import dist

CHANGES = """# Changelog

## [Unreleased]

## [1.2.3] - 2026-01-31

### Added

- Something.

## [1.2.2] - 2025-01-31
"""


def test_the_version_is_read_and_has_a_section_of_its_own():
    version = dist.version_of((dist.ROOT / "ppl_ext" / "__init__.py").read_text(encoding="utf-8"))
    dist.check_changelog((dist.ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    dist.check_changelog(CHANGES, "1.2.3")
    with pytest.raises(dist.NotReadyError, match="states no __version__"):
        dist.version_of("version = 3\n")


@pytest.mark.parametrize("version", ["1.2.2", "1.2.4", "1.2", "Unreleased"])
def test_a_version_without_a_section_is_refused(version):
    with pytest.raises(dist.NotReadyError, match=rf"no section '## \[{version}\]"):
        dist.check_changelog(CHANGES, version)


def test_files_that_are_not_those_of_the_release_are_refused(tmp_path):
    (tmp_path / "ppl_ext-1.0.0.tar.gz").touch()
    with pytest.raises(dist.NotReadyError, match="dist holds ppl_ext-1.0.0.tar.gz; it should hold"):
        dist.check_files("1.0.0", tmp_path)


def test_a_command_that_fails_says_what_it_said():
    with pytest.raises(dist.NotReadyError, match="nothing of that name"):
        dist.run("-c", "raise SystemExit('nothing of that name')")
