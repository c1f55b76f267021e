"""Parameters: one plain rule for values that are written as text, bounds, and names that are
nearly right.
"""

from deepatlas import parameters
from deepatlas.errors import UserError, brief, printable, shortened
from deepatlas.parameters import from_notebook, parse, plain
from deepatlas.records import recorded_experiment

import numpy as np
import pytest
import torch

# --- values that are written as text --------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("0", 0),
        ("5", 5),
        ("-3", -3),
        ("+3", 3),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("2.", 2.0),
        ("-1.5E2", -150.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("none", "none"),  # a value of joint_start
        ("oasis35", "oasis35"),
        ("cuda:1", "cuda:1"),
        # what YAML makes something else of
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("off", "off"),
        ("2020-01-01", "2020-01-01"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("*a", "*a"),
        ("{a: 1}", "{a: 1}"),
        (".inf", ".inf"),
        ("nan", "nan"),
        ("٣", "٣"),
        ("", ""),
    ],
)
def test_a_text_is_a_number_a_word_or_itself(text, value):
    read = plain(text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("010", "'010' begins with 0: write 10"),
        ("-00", "'-00' begins with 0: write 0"),
        ("1e999", "'1e999' is larger than any number"),
        ("9" * 5000, "a number of 5000 digits is more than any parameter takes"),
    ],
)
def test_a_number_that_could_be_misread_is_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        plain(text)


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("seed", "010", "parameter 'seed' = '010': '010' begins with 0: write 10"),
        ("seed", "1:30", "parameter 'seed' = '1:30': input should be a valid integer"),
        ("seed", "1_0", "parameter 'seed' = '1_0': input should be a valid integer"),
        ("seed", " 5 ", "parameter 'seed' = ' 5 ': input should be a valid integer"),
        ("velocity", "yes", "parameter 'velocity' = 'yes': input should be a valid boolean"),
        ("lambda_r", "nan", "parameter 'lambda_r' = 'nan': input should be a valid number"),
        ("lambda_r", "false", "'lambda_r' = 'false': a number or a word was wanted, not true"),
        ("dims", "02", "'02' begins with 0: write 2"),
        ("unlabelled", "x", "parameter 'unlabelled' = 'x': input should be a valid integer"),
    ],
)
def test_texts_from_papermill_follow_the_same_rule(name, text, sentence):
    with pytest.raises(UserError) as caught:
        parse({name: text})
    assert str(caught.value) == sentence or sentence in str(caught.value)
    assert "label_seed" not in str(caught.value)  # nobody has given it


def test_texts_that_stand_for_values_are_these_values():
    read = parse(
        {
            "seed": "7",
            "velocity": "true",
            "lambda_r": "1e-3",
            "labelled": "2",
            "dims": "3",
            "unlabelled": "4",
            "term_weights": {"similarity": ".5"},
        }
    )
    assert read == parse(
        {
            "seed": 7,
            "velocity": True,
            "lambda_r": 0.001,
            "labelled": 2,
            "dims": 3,
            "unlabelled": 4,
            "term_weights": {"similarity": 0.5},
        }
    )


@pytest.mark.parametrize("two", [2, 2.0, "2", "2.0", np.int64(2), np.float64(2)])
def test_two_dimensions_are_two_however_they_are_written(two):
    experiment = parse({"dims": two})
    assert experiment == parse({"dims": 2}) and type(experiment.dims) is int
    assert experiment.seg_steps == parameters.PROFILES["class-2d"]["seg_steps"]


@pytest.mark.parametrize("name", ["seed", "labelled", "lambda_r", "batch_size"])
@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float32(2), "2"])
def test_a_number_is_the_same_in_every_type(name, value):
    assert parse({name: value}).model_dump_json() == parse({name: 2}).model_dump_json()


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 99999999999999999999},
        {"seed": 10**5000},
        {"label_seed": 2**63},
        {"batch_size": 1_000_000_000},
        {"seg_steps": 10**9},
        {"reg_steps": 10**9},
        {"joint_steps": 10**400},
        {"reg_turns": 10**400},
        {"passes": 10**6},
        {"labelled": 10**400},
        {"unlabelled": 10**400},
        {"lambda_r": 10**400},
        {"augmentation": 1e300},
        {"lambda_r": float("nan")},
        {"lambda_sp": float("inf")},
        {"term_weights": {"similarity": float("inf")}},
        {"term_weights": {"similarity": True}},
        {"term_weights": {"similarity": "yes"}},
        {"term_weights": [1, 2]},
        {"dims": 2.5},
        {"dims": True},
        {"dims": [2]},
        {"dims": {}},
        {"profile": {"a": 1}},
        {"dataset": "x" * 10**6},
        {"x" * 10**6: 1},
        {"similarity": ["lncc"] * 10**5},
        {"networks": "kit\x1b[2J"},
    ],
    ids=lambda values: f"{str(next(iter(values)))[:20]}",
)
def test_what_cannot_be_is_one_short_sentence(values):
    with pytest.raises(UserError) as caught:
        parse(values)
    sentence = str(caught.value)
    assert "\n" not in shortened(sentence, 10**7) and "\x1b" not in sentence
    if "dataset" not in values:  # the sentence of the data sets
        assert len(sentence) < 1200


def test_the_largest_seed_serves_whoever_draws():
    seed = parse({"seed": parameters.LARGEST_SEED}).seed
    torch.Generator().manual_seed(seed)
    np.random.default_rng(seed)
    assert np.array([seed]).dtype == np.int64


def test_what_a_record_says_of_an_experiment_has_not_changed():
    """The name of a run is made of it."""
    assert parse({}).model_dump_json() == (
        '{"dataset":"phantom-brain","profile":"class","dims":2,"recipe":"best","regimes":"all",'
        '"labelled":1,"seed":0,"label_seed":0,"seg_steps":500,"reg_steps":600,'
        '"joint_steps":600,"reg_turns":2,"batch_size":2,"seg_batch_size":2,"lambda_r":0.2,'
        '"lambda_a":1.0,"lambda_weak":0.3,"lambda_sp":10.0,"lambda_ce":10.0,"term_weights":{},'
        '"similarity":"lncc","teacher":0.98,"sampled_warps":true,"fourth_case":false,'
        '"joint_start":"none","keep":"last","unlabelled":null,"passes":1,"coarse_passes":2,'
        '"velocity":true,"networks":"kit","seg_rate":0.008,"reg_rate":0.002,"augmentation":1.0,'
        '"refine":50,"device":"auto","precision":"auto","compiled":false}'
    )


def test_the_segmentation_network_has_as_many_pairs_as_is_said():
    """Else as the other network: who says ``batch_size`` means both."""
    assert parse({}).seg_batch_size == parse({}).batch_size == 2
    assert parse({"batch_size": 3}).seg_batch_size == 3
    both = parse({"batch_size": 3, "seg_batch_size": 1})
    assert (both.batch_size, both.seg_batch_size) == (3, 1)
    # a record that was written before there were two
    assert parse({"batch_size": 4}).seg_batch_size == 4


# --- a notebook's variables -----------------------------------------------------------------------


@pytest.fixture
def notebook():
    """The variables of a notebook whose parameters were read once."""
    namespace = {"lambda_r": 0.2, "labelled": 1}
    from_notebook(namespace)
    return namespace


@pytest.mark.parametrize(
    "name, value, meant",
    [
        ("lambda_R", 1.0, "lambda_r"),
        ("LAMBDA_R", 1.0, "lambda_r"),
        ("labeled", 5, "labelled"),
        ("batchsize", 2, "batch_size"),
        ("seg_step", 10, "seg_steps"),
    ],
)
def test_a_parameter_misspelt_later_is_told(notebook, name, value, meant):
    notebook[name] = value
    sentence = f"there is no parameter '{name}', did you mean '{meant}'"
    for _ in range(2):
        with pytest.raises(UserError, match=sentence):
            from_notebook(notebook)
    del notebook[name]
    notebook[meant] = value
    assert getattr(from_notebook(notebook), meant) == value


@pytest.mark.parametrize(("name", "value"), [("lamda_r", -1), ("profil", "smol"), ("sed", 2**70)])
def test_a_misspelt_parameter_is_told_whatever_its_bounds(notebook, name, value):
    notebook[name] = value
    with pytest.raises(UserError, match=f"there is no parameter '{name}', did you mean"):
        from_notebook(notebook)


def test_a_parameter_that_comes_later_counts(notebook):
    notebook["seg_rate"] = 0.01
    assert from_notebook(notebook).seg_rate == 0.01


def test_a_parameter_that_is_deleted_has_its_default_again(notebook):
    notebook["labelled"] = 5
    assert from_notebook(notebook).labelled == 5
    del notebook["labelled"]
    assert from_notebook(notebook).labelled == 1


def test_other_variables_are_nobodys_business(notebook):
    notebook |= {
        "record": {"a": 1},
        "seeds": [0, 1, 2],  # no parameter is a list
        "regime": "seg_long",  # not what the parameter regimes may be
        "dice": 0.9,
        "network": "seg",
        "task": "registration",
        "grid": "80 x 96",
        "networks": torch,  # a module of that name
    }
    assert from_notebook(notebook) == parse({})


@pytest.mark.parametrize("five", [np.int64(5), np.float64(5)])
def test_a_number_of_numpy_is_a_parameter_from_the_first_call_on(five):
    assert from_notebook({"labelled": five}).labelled == 5


# --- what sentences quote -------------------------------------------------------------------------


def test_what_is_long_loses_its_middle():
    assert shortened("a" * 50, 200) == "a" * 50
    assert shortened(f"begin{'x' * 1000}end", 20) == "beginxxxxx...xxxxxxxend"
    assert len(brief("x" * 10**6)) < 220 and len(brief(list(range(10**6)))) < 220
    assert brief("many") == "'many'" and brief(["a", 1]) == "['a', 1]"
    assert "int" in brief(10**5000)


def test_what_is_quoted_cannot_steer_a_terminal():
    assert printable("a\x1b[2Jb") == "a\\x1b[2Jb"
    assert shortened("a\x1b\nb\r\u2028c") == "a\\x1b b\\r\\u2028c"


# --- what earlier versions wrote ------------------------------------------------------------------


@pytest.mark.parametrize("start", ["baselines", "alike", "semi", "none"])
def test_a_record_of_an_earlier_version_means_what_was_done_then(start):
    """One look at each pair, and the best weights: what it trained is used as it was trained."""
    written = parse({"joint_start": "none"}).model_dump(mode="json")
    for name in ("coarse_passes", "keep", "lambda_ce"):  # were not there
        del written[name]
    found = recorded_experiment({"experiment": written | {"joint_start": start}})
    assert (found.coarse_passes, found.keep, found.lambda_ce) == (0, "best", 0.0)
    assert found.joint_start == ("none" if start == "none" else "trained")
