"""The one rule of merging, on plain dictionaries."""

import pytest

from mmframe.cli.merge import assign, merge_config
from mmframe.errors import UserError

OLD = {
    "model": {"router": {"class_path": "Modality", "init_args": {"init": "copy", "sites": {"ffn": "all", "q": "all"}}}},
    "data": {"class_path": "Pairs", "init_args": {"batch_size": 8}},
    "trainer": {"max_steps": 20, "callbacks": ["A"]},
}
ROUTER = OLD["model"]["router"]


def router(new):
    return merge_config(OLD, {"model": {"router": new}})["model"]["router"]


def test_another_class_drops_the_old_arguments():
    assert router({"class_path": "Other"}) == {"class_path": "Other"}
    assert router("Other") == "Other"
    assert assign(OLD, "model.router", "Other")["model"]["router"] == "Other"
    assert assign(OLD, "model.router.class_path", "Other")["model"]["router"] == {"class_path": "Other"}
    swapped = assign(assign(OLD, "model.router.init", "zero"), "model.router", "Other")
    assert swapped["model"]["router"] == "Other"


def test_the_same_class_keeps_the_other_arguments():
    expected = {"class_path": "Modality", "init_args": {**ROUTER["init_args"], "init": "zero"}}
    assert router({"class_path": "Modality", "init_args": {"init": "zero"}}) == expected
    assert router({"init_args": {"init": "zero"}}) == expected
    assert assign(OLD, "model.router.init", "zero")["model"]["router"] == expected
    assert assign(OLD, "model.router.init_args.init", "zero")["model"]["router"] == expected
    assert router("Modality") == ROUTER
    assert router("package.Modality")["init_args"] == ROUTER["init_args"]


def test_classes_of_one_name_in_two_packages_are_two_classes():
    old = {"model": {"optim": {"class_path": "a.AdamW", "init_args": {"lr": 1}}}}
    assert merge_config(old, {"model": {"optim": {"class_path": "b.AdamW"}}})["model"]["optim"] == {
        "class_path": "b.AdamW"
    }


def test_dictionaries_and_lists_are_values():
    sites = router({"init_args": {"sites": {"ffn": "all"}}})["init_args"]["sites"]
    assert sites == {"ffn": "all"}
    assert merge_config(OLD, {"trainer": {"callbacks": ["B"]}})["trainer"]["callbacks"] == ["B"]


def test_a_key_of_a_dictionary_can_be_set():
    sites = assign(OLD, "model.router.sites.o", "all")["model"]["router"]["init_args"]["sites"]
    assert sites == {"ffn": "all", "q": "all", "o": "all"}


def test_plus_appends():
    assert assign(OLD, "trainer.callbacks+", "B")["trainer"]["callbacks"] == ["A", "B"]
    assert merge_config(OLD, {"trainer": {"callbacks+": ["B", "C"]}})["trainer"]["callbacks"] == ["A", "B", "C"]
    with pytest.raises(UserError, match="appends to a list"):
        assign(OLD, "trainer.max_steps+", 3)


def test_an_item_of_a_list_can_be_changed():
    old = {"trainer": {"callbacks": [{"class_path": "Timer", "init_args": {"every": 1}}]}}
    new = assign(old, "trainer.callbacks.0.every", 2)
    assert new["trainer"]["callbacks"] == [{"class_path": "Timer", "init_args": {"every": 2}}]
    with pytest.raises(UserError, match="1 items"):
        assign(old, "trainer.callbacks.3.every", 2)


def test_short_form_reaches_into_data_and_nested_components():
    assert assign(OLD, "data.batch_size", 4)["data"]["init_args"] == {"batch_size": 4}
    old = {"model": {"processor": {"class_path": "P", "init_args": {"tokenizer": "T"}}}}
    new = assign(old, "model.processor.tokenizer.path", "x")["model"]["processor"]["init_args"]["tokenizer"]
    assert new == {"class_path": "T", "init_args": {"path": "x"}}


def test_null_takes_a_component_away_and_nothing_is_changed_in_place():
    before = repr(OLD)
    assert router(None) is None
    assign(OLD, "model.router.init", "zero")
    assert repr(OLD) == before
