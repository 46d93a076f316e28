"""The rules of the house, read off the sources; each failure lists the places to mend."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import trimtab

ROOT = Path(trimtab.__file__).parent
#: a folder imports only itself and folders before it
LAYERS = ("core", "hw_profiles", "spaces", "compressors", "evaluators", "search", "experiments")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 5
#: what talks to a person at a terminal may print
MAY_PRINT = re.compile(r"experiments/(commands/\w+|terminal\w*|benchmarks/\w+)\.py")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    """The library's modules, relative to the root."""
    folders = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in [*folders, *ROOT.glob("*.py")])


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def walk(path: Path, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, kinds))


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of what a file imports, relative imports resolved."""
    package = ["trimtab", *path.parent.parts]
    for node in walk(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        yield node.lineno, module
        # "from .. import search" imports a folder by the imported name
        yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def report(offenders: list[str], rule: str) -> None:
    assert not offenders, f"{rule}:\n  " + "\n  ".join(offenders)


def test_a_folder_imports_only_the_folders_before_it() -> None:
    offenders = []
    for path in sources():
        if path.parent == Path():
            continue
        allowed = LAYERS[: LAYERS.index(path.parts[0]) + 1]
        for line, module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == "trimtab" and len(parts) > 1 and parts[1] in LAYERS and parts[1] not in allowed:
                offenders.append(f"{path}:{line} imports {module}")
    report(offenders, f"folders depend in this order: {' → '.join(LAYERS)}")


def test_folders_import_each_other_relatively() -> None:
    offenders = [
        f"{path}:{node.lineno}"
        for path in sources()
        if path.parent != Path()
        for node in walk(path, ast.Import, ast.ImportFrom)
        if not getattr(node, "level", 0)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if str(name).split(".")[0] in {"trimtab", *LAYERS}
    ]
    report(offenders, "inside the folders write relative imports, such as: from ..core.errors import SpecError")


def test_the_root_modules_import_absolutely() -> None:
    offenders = [
        f"{path}:{node.lineno}"
        for path in sources()
        if path.parent == Path()
        for node in walk(path, ast.ImportFrom)
        if node.level
    ]
    report(offenders, "the root's __init__.py and __main__.py need absolute imports: pytest imports them by themselves")


def test_the_root_holds_no_module_besides_init_and_main() -> None:
    offenders = [path.name for path in ROOT.glob("*.py") if path.name not in {"__init__.py", "__main__.py"}]
    report(offenders, "modules belong in a folder")


def test_the_package_list_names_every_folder() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(("trimtab", *path.parent.parts)) for path in sources()}
    assert found == set(settings["packages"]), "pyproject.toml, [tool.setuptools] packages, must name every folder"


def test_every_folder_has_an_init() -> None:
    offenders = sorted({str(path.parent) for path in sources() if not (ROOT / path.parent / "__init__.py").exists()})
    report(offenders, "a folder without __init__.py is not a package")


def test_all_is_sorted_and_complete() -> None:
    public = {
        alias.asname or alias.name
        for node in walk(Path("__init__.py"), ast.ImportFrom)
        for alias in node.names
        if not alias.name.startswith("_")
    }
    names = list(getattr(trimtab, "__all__", []))
    assert names == sorted(names), "trimtab.__all__ must be sorted"
    # what is imported only for type checkers, and loaded lazily, counts too; typing's own names do not
    assert public - {"TYPE_CHECKING", "Any", "import_module"} <= set(names) | {"version"}


def test_every_public_name_exists_and_is_documented() -> None:
    offenders = [
        name
        for name in getattr(trimtab, "__all__", [])
        if not name.startswith("__") and not (getattr(trimtab, name).__doc__ or "").strip()
    ]
    report(offenders, "what trimtab offers has a docstring")


def test_every_public_definition_has_a_docstring() -> None:
    offenders = []
    for path in sources():
        if not ast.get_docstring(parse(path)):
            offenders.append(f"{path}:1 module")
        offenders += [f"{path}:{node.lineno} {name}" for name, node in public_definitions(parse(path))]
    report(offenders, "public modules, classes and functions say what they are for")


def public_definitions(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    """Public classes, functions and methods that lack a docstring."""
    for node in scope.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        is_overload = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
        if not ast.get_docstring(node) and not is_overload:
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{name}", inner) for name, inner in public_definitions(node))


def test_files_are_short() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    offenders = [f"{path} has {length} lines" for path, length in lengths.items() if length > MAX_FILE_LINES]
    report(offenders, f"a file stays within {MAX_FILE_LINES} lines; split it by noun")


def test_functions_are_short() -> None:
    offenders = [
        f"{path}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in sources()
        for node in walk(path, ast.FunctionDef, ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    report(offenders, f"a function stays within {MAX_FUNCTION_LINES} lines")


def test_functions_take_few_parameters() -> None:
    offenders = [
        f"{path}:{node.lineno} {node.name} takes {count_parameters(node)}"
        for path in sources()
        for node in walk(path, ast.FunctionDef, ast.AsyncFunctionDef)
        if count_parameters(node) > MAX_PARAMETERS and not is_command(node)
    ]
    report(offenders, f"a function takes at most {MAX_PARAMETERS} parameters; then a dataclass")


def count_parameters(node: Function) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in {"self", "cls"}])


def is_command(node: Function) -> bool:
    """Whether typer reads the parameters as command line options."""
    return any(".command" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_the_library_does_not_print() -> None:
    offenders = [
        f"{path}:{node.lineno}"
        for path in sources()
        if not MAY_PRINT.fullmatch(path.as_posix())
        for node in walk(path, ast.Call)
        if isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    report(offenders, "the library logs; only the command line prints")


def test_nothing_is_left_to_do_in_the_sources() -> None:
    marker = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b")
    offenders = [
        f"{path}:{number}"
        for path in sources()
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if marker.search(line)
    ]
    report(offenders, "open ends belong in the tracker, not in the code")


def test_heavy_libraries_are_not_imported_at_the_top_of_light_folders() -> None:
    heavy = {"torch", "ray", "openvino", "tensorrt"}
    offenders = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path in sources()
        if path.parts[0] in {"core", "hw_profiles", "spaces", "__init__.py", "__main__.py"}
        for node in parse(path).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if str(name).split(".")[0] in heavy
    ]
    report(offenders, "torch, ray and the runtimes are imported where they run")


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_called_as_its_file(path: Path) -> None:
    assert f"\nname: {path.stem}\n" in "\n" + path.read_text()
