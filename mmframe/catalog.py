"""The static catalogue of components: names, docs and arguments read from the source, importing nothing.

It answers `mmframe components ls` at once and lets recipes be checked before torch is loaded. What it cannot read
(an unknown base class, a computed default) it leaves open; the command line checks that again after the import.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from mmframe.errors import UserError, suggest
from mmframe.registry import KINDS, PLUGIN_GROUP

_DECORATOR = re.compile(r"^\s*@(?:\w+\.)*register\(", re.MULTILINE)
_TEMPLATE = re.compile(r"""^\s*(?:\w+\.)*register_template\(\s*["']([^"']+)["']""", re.MULTILINE)


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor, as it stands in the source."""

    name: str
    annotation: ast.expr | None
    default: ast.expr | None
    required: bool
    doc: str = ""

    @property
    def type_text(self) -> str:
        return ast.unparse(self.annotation).strip("'\"") if self.annotation is not None else "Any"

    @property
    def default_text(self) -> str:
        return "required" if self.required else ast.unparse(self.default) if self.default is not None else "..."


@dataclass(frozen=True)
class Signature:
    """Arguments of a callable; `open` when it takes keywords that could not be followed."""

    arguments: dict[str, Argument]
    open: bool = False


@dataclass(frozen=True)
class Entry:
    """A registered class as found in the source."""

    name: str
    kind: str
    module: str
    file: Path
    line: int
    doc: str
    signature: Signature
    bases: tuple[str, ...] = field(default=())

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def summary(self) -> str:
        return self.doc.strip().partition("\n")[0]


@dataclass(frozen=True)
class _Class:
    node: ast.ClassDef
    file: Path
    module: str


class Sources:
    """The source files of some packages, parsed when they are first needed.

    Args:
        packages: Name and location (folder or file) of each top-level package.
    """

    def __init__(self, packages: dict[str, Path]) -> None:
        self.files: dict[Path, str] = {}
        for name, location in packages.items():
            if location.is_file():
                self.files[location] = name
                continue
            for file in sorted(location.rglob("*.py")):
                parts = [name, *file.relative_to(location).with_suffix("").parts]
                if not any(part.startswith("_") and part != "__init__" for part in parts):
                    self.files[file] = ".".join(part for part in parts if part != "__init__")
        self._text: dict[Path, str] = {}
        self._tree: dict[Path, ast.Module] = {}

    def text(self, file: Path) -> str:
        if file not in self._text:
            self._text[file] = file.read_text(encoding="utf-8")
        return self._text[file]

    def classes(self, file: Path) -> dict[str, _Class]:
        if file not in self._tree:
            try:
                self._tree[file] = ast.parse(self.text(file))
            except SyntaxError as error:
                raise UserError(f"{file}:{error.lineno}: syntax error: {error.msg}") from error
        nodes = (node for node in self._tree[file].body if isinstance(node, ast.ClassDef))
        return {node.name: _Class(node, file, self.files[file]) for node in nodes}

    def _imported_from(self, name: str, file: Path) -> str | None:
        """The module that a file imports a name from."""
        for node in self._tree[file].body:
            if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
                return node.module
        return None

    def find(self, name: str, near: Path) -> _Class | None:
        """The class of this name: in the same file, or where it is imported from, else the first of the packages."""
        if found := self.classes(near).get(name):
            return found
        module = self._imported_from(name, near)
        for file in (file for file, known in self.files.items() if known == module):
            if found := self.classes(file).get(name):
                return found
        pattern = re.compile(rf"^class {re.escape(name)}\b", re.MULTILINE)
        for file in self.files:
            if pattern.search(self.text(file)):
                return self.classes(file).get(name)
        return None

    def signature(self, cls: _Class, seen: tuple[str, ...] = ()) -> Signature:
        """Constructor arguments of a class, following one base where it has none or passes keywords on."""
        docs = argument_docs(ast.get_docstring(cls.node) or "")
        init = next((n for n in cls.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        own: dict[str, Argument] = {}
        if init is not None:
            docs = {**docs, **argument_docs(ast.get_docstring(init) or "")}
            own = function_arguments(init, docs)
            if init.args.kwarg is None:
                return Signature(own)
        elif any(_dotted(d).split(".")[-1] == "dataclass" for d in map(_called, cls.node.decorator_list)):
            return Signature({a.name: a for a in dataclass_arguments(cls.node, docs)})
        bases = [_dotted(base).split(".")[-1] for base in cls.node.bases]
        for name in bases:
            base = self.find(name, cls.file) if name not in seen else None
            if base is not None and base.node is not cls.node:
                inherited = self.signature(base, (*seen, name))
                if inherited.arguments or inherited.open:
                    given = _given_to_base(init, list(inherited.arguments)) if init is not None else set()
                    passed_on = {n: a for n, a in inherited.arguments.items() if n not in given | own.keys()}
                    return Signature({**own, **passed_on}, inherited.open)
        return Signature(own, init is not None and init.args.kwarg is not None)

    def entries(self) -> Iterator[Entry]:
        for file in self.files:
            if not _DECORATOR.search(self.text(file)):
                continue
            for cls in self.classes(file).values():
                kind = _registered_kind(cls.node)
                if kind is not None:
                    yield Entry(
                        name=cls.node.name,
                        kind=kind,
                        module=cls.module,
                        file=file,
                        line=cls.node.lineno,
                        doc=ast.get_docstring(cls.node) or "",
                        signature=self.signature(cls),
                        bases=tuple(_dotted(base).split(".")[-1] for base in cls.node.bases),
                    )


def _given_to_base(init: ast.FunctionDef, names: list[str]) -> set[str]:
    """Of the base's arguments, those that `super().__init__(...)` gives itself: the caller cannot."""
    given: set[str] = set()
    for node in ast.walk(init):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            given |= set(names[: len(node.args)]) | {word.arg for word in node.keywords if word.arg}
    return given


def _called(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


def _dotted(node: ast.expr) -> str:
    return ast.unparse(node.value if isinstance(node, ast.Subscript) else node)


def _registered_kind(node: ast.ClassDef) -> str | None:
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and _dotted(call.func).split(".")[-1] == "register" and call.args:
            if isinstance(call.args[0], ast.Constant) and call.args[0].value in KINDS:
                return call.args[0].value
    return None


def function_arguments(node: ast.FunctionDef, docs: dict[str, str]) -> dict[str, Argument]:
    """Arguments of a method without `self`."""
    plain = [*node.args.posonlyargs, *node.args.args]
    padded = [None] * (len(plain) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(plain, padded, strict=True)][1:] + [*zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return {a.arg: Argument(a.arg, a.annotation, d, d is None, docs.get(a.arg, "")) for a, d in pairs}


def dataclass_arguments(node: ast.ClassDef, docs: dict[str, str]) -> Iterator[Argument]:
    """Fields of a dataclass."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            name = item.target.id
            yield Argument(name, item.annotation, item.value, item.value is None, docs.get(name, ""))


def argument_docs(docstring: str) -> dict[str, str]:
    """The per-argument texts of a Google `Args:` block."""
    block = re.search(r"^[ \t]*Args:[ \t]*\n(.*?)(?=^\S|\Z|^[ \t]*(?:Returns|Raises|Yields|Example)s?:)",
                      docstring, re.MULTILINE | re.DOTALL)  # fmt: skip
    docs: dict[str, str] = {}
    name = ""
    indent = None
    for line in block.group(1).splitlines() if block else ():
        depth = len(line) - len(line.lstrip())
        head = re.match(r"\s*\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)", line)
        if head and (indent is None or depth <= indent):
            indent, name = depth, head.group(1)
            docs[name] = head.group(2).strip()
        elif name and line.strip():
            docs[name] = f"{docs[name]} {line.strip()}".strip()
    return docs


def package_locations() -> dict[str, Path]:
    """mmframe and the top-level packages of every plug-in, located without importing them.

    Raises:
        UserError: If a package is missing, or if another `components` hides the one installed with mmframe.
    """
    own = Path(__file__).parent
    found = {"mmframe": own}
    for plugin in entry_points(group=PLUGIN_GROUP):
        name = plugin.value.split(":")[0].split(".")[0]
        spec = find_spec(name)
        if spec is None or (spec.origin is None and not spec.submodule_search_locations):
            raise UserError(f"plug-in {plugin.name!r}: package {name!r} cannot be found; reinstall its distribution")
        roots = list(spec.submodule_search_locations or ())
        location = Path(roots[0]) if roots else Path(str(spec.origin))
        if plugin.dist is not None and plugin.dist.name == "mmframe" and location.resolve().parent != own.parent:
            raise UserError(
                f"package {name!r} is {location}, not the one of mmframe ({own.parent / name}): a folder of that name "
                "comes first on sys.path; run from another directory, or use the `mmframe` script"
            )
        found[name] = location
    sibling = own.parent / "components"
    if "components" not in found and (own.parent / "pyproject.toml").is_file() and sibling.is_dir():
        found["components"] = sibling  # a checkout that is not installed
    return found


@functools.cache
def sources() -> Sources:
    """The sources of mmframe and its plug-ins."""
    return Sources(package_locations())


@functools.cache
def catalog() -> dict[str, Entry]:
    """All registered classes by name.

    Raises:
        UserError: If two classes have one name; both places are named.
    """
    found: dict[str, Entry] = {}
    for entry in sources().entries():
        if entry.name in found:
            other = found[entry.name]
            raise UserError(
                f"two components are called {entry.name!r}: {other.file}:{other.line} and {entry.file}:{entry.line}; "
                "rename one of them"
            )
        found[entry.name] = entry
    return dict(sorted(found.items(), key=lambda item: (KINDS.index(item[1].kind), item[0])))


def of_kind(kind: str) -> dict[str, Entry]:
    """The registered classes of one kind, by name."""
    return {name: entry for name, entry in catalog().items() if entry.kind == kind}


def lookup(name: str) -> Entry:
    """The entry of a bare name.

    Raises:
        UserError: If there is none.
    """
    if name not in catalog():
        raise UserError(f"no component is called {name!r}; {suggest(name, catalog())}")
    return catalog()[name]


@functools.cache
def template_names() -> list[str]:
    """Names of the chat templates that mmframe and its plug-ins register."""
    found = sources()
    return sorted({name for file in found.files for name in _TEMPLATE.findall(found.text(file))})


def own_modules() -> list[str]:
    """mmframe's own modules that register components (the registry imports these and no others)."""
    return sorted({entry.module for entry in catalog().values() if entry.module.split(".")[0] == "mmframe"})


@functools.cache
def model_signature() -> Signature:
    """Arguments of mmframe.module.MultimodalModule: the keys of `model:`."""
    file = Path(__file__).parent / "module.py"
    return sources().signature(sources().classes(file)["MultimodalModule"])


@functools.cache
def trainer_signature() -> Signature:
    """Arguments of Lightning's Trainer: the keys of `trainer:`."""
    file = _lightning() / "trainer" / "trainer.py"
    trainer = Sources({"lightning.pytorch.trainer.trainer": file})
    return trainer.signature(trainer.classes(file)["Trainer"])


@functools.cache
def callback_names() -> list[str]:
    """Names of Lightning's own callbacks, which recipes may give without a module."""
    tree = ast.parse((_lightning() / "callbacks" / "__init__.py").read_text(encoding="utf-8"))
    names = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return sorted(names)


def _lightning() -> Path:
    spec = find_spec("lightning")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("package 'lightning' is not installed; run: pip install 'lightning>=2.5.5,<2.7'")
    return Path(spec.submodule_search_locations[0], "pytorch")
