"""The static catalogue says what Python says; the registry refuses two of a name."""

import inspect
import sys
import textwrap

import pytest

from mmframe import catalog, registry
from mmframe.catalog import Signature, Sources, argument_docs
from mmframe.cli.types import accepts
from mmframe.errors import UserError


def assert_same_arguments(static: Signature, init) -> None:
    real = {k: p for k, p in inspect.signature(init).parameters.items() if k != "self"}
    named = {k: p for k, p in real.items() if p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL}
    if any(p.kind is p.VAR_KEYWORD for p in real.values()):  # the catalogue follows keywords into the base
        assert list(static.arguments)[: len(named)] == list(named)
    elif named or not static.arguments:
        assert list(static.arguments) == list(named)
    for name, parameter in named.items():
        assert static.arguments[name].required == (parameter.default is parameter.empty)


@pytest.mark.parametrize("name", list(catalog.catalog()))
def test_catalogue_and_registry_agree(name):
    entry = catalog.lookup(name)
    cls = registry.get(entry.kind, name)
    assert registry.place(cls) == entry.path
    assert_same_arguments(entry.signature, cls.__init__)


@pytest.mark.parametrize("name", list(catalog.catalog()))
def test_every_component_and_argument_is_documented(name):
    entry = catalog.lookup(name)
    assert entry.summary
    undocumented = [argument.name for argument in entry.signature.arguments.values() if not argument.doc]
    assert not undocumented, f"{entry.file}: add to the Args block of {name}: {undocumented}"


def test_all_registered_classes_are_in_the_catalogue():
    own = {cls.__name__ for cls in registry.classes() if cls.__module__.split(".")[0] in ("mmframe", "components")}
    assert own == set(catalog.catalog())
    assert {"Llama", "SharedRouter", "ToyData", "ByteTokenizer"} <= own


def test_signatures_of_module_and_trainer():
    from lightning.pytorch import Trainer

    from mmframe.module import MultimodalModule

    assert_same_arguments(catalog.model_signature(), MultimodalModule.__init__)
    assert_same_arguments(catalog.trainer_signature(), Trainer.__init__)
    import lightning.pytorch.callbacks as callbacks

    assert set(callbacks.__all__) <= set(catalog.callback_names())


def test_two_classes_of_one_name(tmp_path, monkeypatch):
    for file in ("one", "two"):
        (tmp_path / f"{file}.py").write_text("@register('router')\nclass Same:\n    '''Doc.'''\n")
    monkeypatch.setattr(catalog, "sources", lambda: Sources({"pkg": tmp_path}))
    with pytest.raises(UserError, match=r"'Same': .*one\.py:2 and .*two\.py:2"):
        catalog.catalog.__wrapped__()


def test_registering_a_name_twice_names_both_places(monkeypatch):
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))

    def make(module):
        return type("Twice", (), {"__module__": module, "__qualname__": "Twice"})

    first = registry.register("router")(make("pkg.one"))
    assert registry.register("router")(first) is first
    with pytest.raises(UserError, match=r"pkg\.one\.Twice and pkg\.two\.Twice"):
        registry.register("freezing")(make("pkg.two"))
    with pytest.raises(UserError, match="did you mean 'router'"):
        registry.register("routr")


def test_plugins_are_found_by_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "my_plugin_pkg"
    (package / "deep").mkdir(parents=True)
    for folder in (package, package / "deep"):
        (folder / "__init__.py").write_text("")
    source = "from mmframe.registry import register\n@register('router')\nclass {}:\n    '''Mine.'''\n"
    (package / "deep" / "routers.py").write_text(source.format("PluggedRouter"))
    (package / "_private.py").write_text("raise RuntimeError('a private module must not be imported')\n")
    info = tmp_path / "my_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmframe.plugins]\nmine = my_plugin_pkg\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(registry, "_discovered", False)
    assert catalog.package_locations()["my_plugin_pkg"] == package
    assert "my_plugin_pkg" not in sys.modules
    assert registry.get("router", "PluggedRouter").__module__ == "my_plugin_pkg.deep.routers"
    with pytest.raises(UserError, match="did you mean 'PluggedRouter'"):
        registry.get("router", "PlugedRouter")


SOURCE = '''
class Base:
    def __init__(self, a: int, b: str = "x"):
        """Makes it.

        Args:
            a: First,
                on two lines.
        """

class Middle(Base):
    """No constructor of its own."""

class Passes(Middle):
    def __init__(self, c: float | None = None, **kwargs):
        super().__init__(**kwargs)

class Gives(Middle):
    def __init__(self, e, **kwargs):
        super().__init__(e, **kwargs)

class Unknown(Elsewhere):
    def __init__(self, d, **kwargs): ...

@dataclass(frozen=True)
class Data:
    x: int
    y: list[str] = ()
'''


def test_static_signatures_follow_bases(tmp_path):
    file = tmp_path / "m.py"
    file.write_text(SOURCE)
    sources = Sources({"m": file})
    signature = {name: sources.signature(cls) for name, cls in sources.classes(file).items()}
    assert list(signature["Middle"].arguments) == ["a", "b"]
    assert signature["Middle"].arguments["a"].doc == "First, on two lines."
    assert list(signature["Passes"].arguments) == ["c", "a", "b"] and not signature["Passes"].open
    assert list(signature["Gives"].arguments) == ["e", "b"], "what the base is given cannot be given by the caller"
    assert list(signature["Unknown"].arguments) == ["d"] and signature["Unknown"].open
    assert list(signature["Data"].arguments) == ["x", "y"]


def test_argument_docs():
    doc = """Line.

    Args:
        one: Text: with a colon.
            Goes on.
        two (int): Typed.
        **three: Stars.

    Returns:
        four: not an argument.
    """
    assert argument_docs(textwrap.dedent(doc)) == {
        "one": "Text: with a colon. Goes on.",
        "two": "Typed.",
        "three": "Stars.",
    }


@pytest.mark.parametrize(
    "annotation, value, expected",
    [
        ("int", 3, True), ("int", 3.5, False), ("int", True, False), ("int", "3", True), ("float", 3, True),
        ("bool", 0, False), ("str", "x", True), ("str", True, False), ("str | None", None, True),
        ("Optional[int]", "x", False), ("Union[int, Thing]", "x", None), ("list[int]", 3, False),
        ("Sequence[str]", ["a"], True), ("dict[str, int]", [], False), ("Literal['a', 'b']", "c", False),
        ("Literal['a', 'b']", "a", True), ("'int | None'", None, True), ("Thing", "x", None), ("Any", {}, True),
    ],
)  # fmt: skip
def test_types_from_annotations(annotation, value, expected):
    import ast

    assert accepts(ast.parse(annotation, mode="eval").body, value) is expected
