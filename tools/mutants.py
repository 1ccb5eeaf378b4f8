"""What a mutant is: one place of one module changed, and every such place of a source."""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

SWAPS = {
    **{
        ast.Add: ast.Sub,
        ast.Sub: ast.Add,
        ast.Mult: ast.Div,
        ast.Div: ast.Mult,
        ast.Pow: ast.Mult,
        ast.MatMult: ast.Add,
    },
    **{
        ast.Lt: ast.GtE,
        ast.GtE: ast.Lt,
        ast.Gt: ast.LtE,
        ast.LtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
    },
    **{
        ast.And: ast.Or,
        ast.Or: ast.And,
        ast.Is: ast.IsNot,
        ast.IsNot: ast.Is,
        ast.BitAnd: ast.BitOr,
        ast.BitOr: ast.BitAnd,
    },
}
IDENTITIES = {"stop_gradient", "_stop"}
"""Functions of one argument that are left out: without them only a gradient is wrong."""


@dataclass(frozen=True)
class Mutant:
    """One change in one module: the source after it, and the place before and after.

    ``text``, the line without its indentation, and ``nth``, how many equal changes of equal lines come
    before, find the place again after other lines of the module have changed. ``function`` is the function
    that holds the place, as ``watching`` names it, or "".
    """

    module: str
    line: int
    before: str
    after: str
    source: str
    text: str = ""
    nth: int = 0
    function: str = ""

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        """What stays the same while the changed line stands."""
        return self.module, self.text, self.before, self.after, self.nth


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, object]]:
    """Every (node, field, new value) that makes a mutant. Annotations, docstrings and messages are left
    alone; so are the numbers that arguments and fields have by default: they are choices, and what is right
    for a thousand particles is right for one more."""
    skip: set[int] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if (note := getattr(node, name, None)) is not None:
                skip |= {id(x) for x in ast.walk(note)}
        if isinstance(node, ast.arguments):
            skip |= {
                id(x)
                for default in (*node.defaults, *node.kw_defaults)
                if default is not None
                for x in ast.walk(default)
            }
        if isinstance(node, ast.ClassDef):
            fields = (x.value for x in node.body if isinstance(x, ast.AnnAssign) and x.value is not None)
            options = (
                k.value
                for f in fields
                for k in [ast.keyword("", f), *(f.keywords if isinstance(f, ast.Call) else ())]
            )
            skip |= {id(x) for x in options}
        # a message, or whether an error is raised at all: other tests hold these
        if isinstance(node, ast.Raise | ast.JoinedStr):
            skip |= {id(x) for x in ast.walk(node)}
        if (
            isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.BinOp)
            and isinstance(node.value.op, ast.BitOr)
        ):
            skip |= {id(x) for x in ast.walk(node.value)}  # a union of types, as a rule
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, "op", SWAPS[type(node.op)]()
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
            yield node, "ops", [SWAPS[type(node.ops[0])]()]
        elif (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.USub)
            and not isinstance(node.operand, ast.Constant)
        ):
            yield node, "op", ast.UAdd()
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, "operand", ast.UnaryOp(ast.Not(), node.operand)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "value", node.value + 1
        elif isinstance(node, ast.Call) and _name(node.func) in IDENTITIES and len(node.args) == 1:
            yield (
                node,
                "func",
                ast.Lambda(
                    ast.arguments([], [ast.arg("x")], None, [], [], None, []), ast.Name("x", ast.Load())
                ),
            )


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def mutants(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    tree = ast.parse(source)
    lines, found, seen = source.splitlines(), [], Counter[tuple]()
    starts = list(accumulate((len(x) + 1 for x in lines), initial=0))
    spans = list(functions(module, tree))

    def offset(line: int, column: int) -> int:  # ast counts columns in bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node, field, new in sorted(places(tree), key=lambda p: (p[0].lineno, p[0].col_offset)):  # type: ignore[attr-defined]
        start, end = offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        changed = copy.copy(node)
        setattr(changed, field, new)
        before, after = source[start:end], f"({ast.unparse(ast.fix_missing_locations(changed))})"
        line = node.lineno  # type: ignore[attr-defined]
        text = lines[line - 1].strip()
        within = [name for name, f in spans if f.lineno <= line <= (f.end_lineno or 0)]
        nth, seen[text, before, after] = seen[text, before, after], seen[text, before, after] + 1
        function = within[-1] if within else ""
        found.append(
            Mutant(module, line, before, after, source[:start] + after + source[end:], text, nth, function)
        )
    return found


def functions(
    module: str, tree: ast.AST, above: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a module under a name of its own, an outer one before those inside it."""
    for node in ast.iter_child_nodes(tree):
        name = (
            f"{above}.{node.name}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else above
        )
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{module}:{name[1:]}", node
        yield from functions(module, node, name)
