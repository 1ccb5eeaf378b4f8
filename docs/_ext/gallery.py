"""The directive ``picture``: a picture that an executed tutorial drew, with a caption, on another page.

The pictures are those that the build has just made, so none is kept in the tree. Where tutorials are not
executed there are captions alone.
"""

from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


class picture_place(nodes.General, nodes.Element):
    """Holds the place of a picture until every tutorial has been read."""


class Picture(SphinxDirective):
    """``picture`` with a tutorial's name and the number of its picture, from 1 on; the content is the
    caption.
    """

    required_arguments = 2
    has_content = True

    def run(self) -> list[nodes.Node]:
        page, number = f"tutorials/{self.arguments[0]}", int(self.arguments[1])
        title = nodes.paragraph(classes=["picture-title"])
        title += addnodes.pending_xref(
            "", nodes.inline(), reftype="doc", refdomain="std", refexplicit=False, reftarget=f"/{page}"
        )
        box = nodes.container(classes=["picture"])
        box += [title, picture_place(page=page, number=number), *self.parse_content_to_nodes()]
        return [box]


def fill(app, doctree, docname: str) -> None:
    for place in list(doctree.findall(picture_place)):
        drawn = [image["uri"] for image in app.env.get_doctree(place["page"]).findall(nodes.image)]
        if place["number"] <= len(drawn):
            uri = drawn[place["number"] - 1]
            picture = nodes.image(
                uri=uri, candidates={"*": uri}, alt=f"picture {place['number']} of {place['page']}"
            )
            place.replace_self(
                nodes.reference(
                    "",
                    "",
                    picture,
                    internal=True,
                    refuri=app.builder.get_relative_uri(docname, place["page"]),
                )
            )
            continue
        if app.config.nb_execution_mode != "off":
            logger.warning(
                "%s has %d pictures, and no number %d",
                place["page"],
                len(drawn),
                place["number"],
                location=docname,
            )
        place.parent.remove(place)


def setup(app):
    app.add_node(picture_place)
    app.add_directive("picture", Picture)
    app.connect("doctree-resolved", fill)
    app.connect("env-updated", lambda app, env: ["gallery"])  # its pictures may have changed where it did not
    return {"parallel_read_safe": True, "parallel_write_safe": False}
