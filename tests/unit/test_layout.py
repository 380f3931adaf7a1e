"""The names and the folders of the package: a reader finds a room by its name, and no name says nothing."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
FILES = sorted((SOURCE / "darklens").rglob("*.py"))
BANNED = {"own", "its", "some", "found", "shown", "seen", "told", "given"}
BANNED |= {"every", "most", "held", "left", "over", "going"}
JUSTIFIED = {
    "held_out": "the field's term for images that no training saw",
    "delta_chi2_point_given_line": "conditional, as in probability",
    "delta_chi2_point_given_points": "conditional, as in probability",
}


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def identifiers(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def banned(tree):
    return {
        name for name in identifiers(tree) if BANNED & set(name.lower().split("_")) and name.strip("_") not in JUSTIFIED
    }


def test_no_identifier_is_a_pronoun_or_a_vague_participle():
    by_file = {str(path.relative_to(SOURCE)): banned(parsed(path)) for path in FILES}
    assert {file: names for file, names in by_file.items() if names} == {}


def test_pronouns_are_found_in_variables_arguments_attributes_functions_and_classes():
    source = "class Found: pass\ndef _seen(own): self.its = held_out = over_seeds = 1"
    assert banned(ast.parse(source)) == {"Found", "_seen", "own", "its", "over_seeds"}


def test_every_exception_is_used():
    names = {name.strip("_") for path in FILES for name in identifiers(parsed(path))}
    assert set(JUSTIFIED) <= names


def test_no_file_name_occurs_twice():
    count = Counter(path.name for path in FILES if path.name not in {"__init__.py", "__main__.py"})
    assert [name for name, n in count.items() if n > 1] == []


def imports(path, modules):
    """Modules of darklens that a module imports when it is imported itself, not in a function or for type checkers."""
    for node in parsed(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("darklens"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)


def test_no_module_imports_itself_through_others():
    def name(path):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    modules = {name(path): path for path in FILES}
    graph = {module: sorted(set(imports(path, modules)) - {module}) for module, path in modules.items()}
    done, cycles = set(), []

    def visit(module, trail):
        if module in trail:
            cycles.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in graph.get(module, []):
                visit(target, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    assert cycles == []


def test_make_runs_every_folder_of_tests():
    tests = SOURCE.parent / "tests"
    makefile = (SOURCE.parent / "Makefile").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    assert {name for name in folders if f"tests/{name}" not in makefile} == set()
