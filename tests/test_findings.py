"""Numbers in the sentences of the README and of what was found, made anew from the rows: whoever
changes the rows learns which sentences speak of them.
"""

import re

from deepatlas import evidence, places, sweeps
from deepatlas.evaluation.statistics import holm

import pandas as pd

FOUND = places.RESULTS / "README.md"


def says(page, form, numbers):
    """Fail unless the ``page`` says this of the ``numbers``, in its sentences, not in a table made
    from the rows; they write no 0 before a point.
    """
    text = page.read_text(encoding="utf-8")
    sentences = re.sub(r"<!-- \w+.*?<!-- end -->", "", text, flags=re.DOTALL)
    told, said = (re.sub(r"\b0\.", ".", one) for one in (form.format(*numbers), sentences))
    assert told in " ".join(said.split()), told


def test_what_the_readme_finds_is_what_the_rows_say():
    """The numbers of its sentences, made anew."""
    rows = evidence.load_results(places.RESULTS)
    rows = rows[(rows["labelled"] == 1) & (rows["changed"] == "") & (rows["profile"] == "class")]
    assert set(rows["seed"]) == {10, 11, 12, 13, 14} and rows["run"].nunique() == 15
    table = evidence.gains(rows).set_index(["task", "against", "dataset"])
    cohorts = ["oasis35", "phantom-brain", "phantom-knee"]
    dice = rows.groupby(["task", "regime", "dataset", "run"])["dice"].mean()
    dice = dice.groupby(level=[0, 1, 2]).mean()
    errors = rows.groupby(["regime", "dataset", "run"])["endpoint_voxels"].mean()
    errors = errors.groupby(level=[0, 1]).mean()

    def of(task, against):
        return table.loc[task].loc[against].loc[cohorts]

    def more(task, regime, other):
        return (dice[task, regime] - dice[task, other]).loc[cohorts]

    def said(form, numbers):
        says(places.README, form, numbers)

    segmentation = of("segmentation", "seg_baseline")
    assert (segmentation["low"] > 0).all() and "-" not in "".join(segmentation["by_seed"])
    said("by {:.1f}, {:.1f} and {:.1f} points", segmentation["gain"])
    said("by {:.1f}, {:.1f} and {:.1f})", more("segmentation", "semi_seg", "seg_baseline"))
    teacher = of("segmentation", "semi_seg")
    each = teacher[["gain", "low", "high"]].to_numpy().flatten()
    said(
        "{:+.1f} [{:+.1f}, {:+.1f}], {:+.1f} [{:+.1f}, {:+.1f}] and {:+.1f} [{:+.1f}, {:+.1f}]",
        each,
    )
    for against in ("reg_baseline", "semi_reg"):
        found = of("registration", against)
        assert ((found["low"] < 0) & (found["high"] > 0)).all()
    said("bring {:.1f}, {:.1f} and {:.1f} points", more("registration", "reg_full", "reg_baseline"))
    refined = of("registration", "reg_baseline_refined")
    said("has {:.1f} and {:.1f} points more than the refined", refined["gain"].iloc[1:])
    said("on OASIS-35 {:+.1f} [{:+.1f}, {:+.1f}]", refined[["gain", "low", "high"]].iloc[0])
    said("{:.1f}, {:.1f} and {:.1f} points more than SyN", of("registration", "ants_cc")["gain"])
    said("({:.1f}, {:.1f} and {:.1f} more than each pair", of("registration", "optimise")["gain"])
    for one, other, form in (
        ("deepatlas_refined", None, "is {:.2f} voxels from it on brains and {:.2f} on knees"),
        ("reg_baseline_refined", None, "by images alone ({:.2f} and {:.2f})"),
        ("ants_cc", None, "SyN ({:.2f} and {:.2f})"),
        ("optimise", None, "from coarse to fine ({:.2f} and {:.2f})"),
        ("deepatlas", "reg_baseline", "worse ({:+.2f} voxels"),
    ):
        found = errors[one] if other is None else errors[one] - errors[other]
        said(form, found.loc[cohorts[1:]])

    judged = evidence.judge(evidence.read_claims(places.RESULTS / "claims.toml"), places.RESULTS)
    by_name = judged.drop_duplicates("claim").set_index("claim")
    for name, p, place in (
        (
            "One label, slices: segmentation gains over the baseline",
            "p_holm",
            "(p = {:.3f}, corrected",
        ),
        ("refined by what DeepAtlas guesses", "p_holm", "brains and knees (p = {:.3f}: not shown)"),
        ("registers better than SyN", "p_holm", "cross-correlation (p = {:.3f}: not shown)"),
        ("the true error is below", "p", "voxels, p = {:.2f})"),
    ):
        (claim,) = [one for one in by_name.index if name in one]
        assert by_name.loc[claim, "decision"] == "not shown"
        said(place, [by_name.loc[claim, p]])


def test_what_the_anatomy_term_adds_is_what_the_rows_say():
    rows = sweeps.read_table(places.RESULTS, "regimes")
    rows = rows[(rows["dims"] == 2) & (rows["labelled"] == 1)]
    without = rows[rows["changed"].str.contains(r"\blambda_a=0\.0\b")]
    usual = rows[~rows["run"].isin(without["run"])]
    assert without["run"].nunique() == usual["run"].nunique() == 15
    key = ["dataset", "seed"]

    def dice(some, task, regime):
        return some[(some["task"] == task) & (some["regime"] == regime)].set_index(key)["Dice %"]

    def means(values):
        return values.groupby("dataset").mean()

    bare = dice(without, "segmentation", "deepatlas")
    ahead = bare - dice(usual, "segmentation", "seg_baseline")
    added = dice(usual, "segmentation", "deepatlas") - bare
    in_registration = dice(usual, "registration", "deepatlas") - dice(
        without, "registration", "deepatlas"
    )
    assert (ahead > 0).all() and len(ahead) == 15
    for page in (places.README, FOUND):
        says(page, "still {:.1f}, {:.1f} and {:.1f} points ahead", means(ahead))
        says(page, "adds {:.1f}, {:.1f} and {:.1f}", means(added))
    says(FOUND, "is above 0 in {} of 15 pairs of runs", [(added > 0).sum()])
    says(FOUND, "registration it adds {:.1f}, {:.1f} and {:.1f}", means(in_registration))


def test_what_is_said_of_runs_made_twice_is_what_their_rows_say():
    rows = sweeps.read_table(places.RESULTS, "regimes")
    named = ["dataset", "seed", "task", "regime"]
    again = sweeps.read_table(places.RESULTS / "again", "regimes")
    both = rows[rows["changed"] == "precision=bfloat16"].merge(again, on=named)
    both = both[both["regime"] != "identity"]
    moved = (both["Dice %_y"] - both["Dice %_x"]).abs()
    says(
        FOUND,
        "moved by {:.1f} points of Dice in the median and by up to {:.1f}",
        [moved.median(), moved.max()],
    )
    says(places.README, "moves by up to {:.1f} points when", [moved.max()])


def test_what_is_said_of_runs_on_a_gpu_is_what_their_rows_say():
    rows = evidence.load_results(places.RESULTS / "gpu")
    table = evidence.gains(rows).set_index(["dataset", "dims", "labelled", "task", "against"])
    hippocampus = table.loc["hippocampus"].loc[3]

    def found(labelled, task, against):
        return hippocampus.loc[(labelled, task, against), ["gain", "low", "high"]]

    registration = found(1, "registration", "reg_baseline")
    for where in (FOUND, places.README):
        says(where, "gains {:.1f} points [{:.1f}, {:.1f}] over the baseline", registration)
    says(FOUND, "segmentation {:.1f} [{:.1f}, {:+.1f}]", found(1, "segmentation", "seg_baseline"))
    at_five = [found(5, *of)["gain"] for of in (("registration", "reg_baseline"),)]
    says(FOUND, "it is {:.1f} again", at_five)
    says(FOUND, "and {:.1f} [{:.1f}, {:.1f}].", found(5, "segmentation", "seg_baseline"))
    for labelled in (1, 5):  # from a fixed teacher as much
        fixed = found(labelled, "registration", "semi_reg")
        assert fixed["low"] < 0 < fixed["high"]
    by_seed = hippocampus.loc[(1, "registration", "reg_baseline"), "by_seed"]
    assert by_seed.count("+") == 5

    means = rows.groupby(["dataset", "dims", "labelled", "task", "regime", "run"])[
        ["dice", "endpoint_voxels"]
    ].mean()
    means = means.groupby(level=[0, 1, 2, 3, 4]).mean()
    one = means["dice"].loc["hippocampus", 3, 1]
    says(
        FOUND,
        "full supervision lies {:.1f} points above",
        [one["registration", "reg_full"] - one["registration", "reg_baseline"]],
    )
    full = [one["segmentation", key] for key in ("seg_full", "dynunet_full")]
    says(FOUND, "has {:.1f} on the hippocampus, {:.1f} with a DynUNet", full)
    knees = table.loc["phantom-knee"].loc[3].loc[1]
    says(
        FOUND,
        "registration gains {:.1f} points, segmentation {:.1f}",
        [
            knees.loc[of, "gain"]
            for of in (("registration", "reg_baseline"), ("segmentation", "seg_baseline"))
        ],
    )
    says(
        FOUND, "({:+.2f} voxels)", [knees.loc[("registration", "reg_baseline"), "endpoint_voxels"]]
    )
    errors = means["endpoint_voxels"].loc["phantom-knee", 3, 1].loc["registration"]
    says(
        FOUND,
        "({:.2f} and {:.2f} voxels)",
        [errors["deepatlas_refined"], errors["reg_baseline_refined"]],
    )

    # what would have become of the two claims that they are not counted for
    claims = evidence.read_claims(places.RESULTS / "claims.toml")
    p = evidence.judge(claims, places.RESULTS).groupby("claim", sort=False)["p"].max()
    of_volumes = [name for name in p.index if "real volumes" in name]
    p[of_volumes] = [
        hippocampus.loc[(1, *of), "p"]
        for of in (("segmentation", "seg_baseline"), ("registration", "reg_baseline"))
    ]
    corrected = pd.Series(holm(p), p.index)[of_volumes]
    says(FOUND, "would be {:.2f} in segmentation and {:.4f} in registration", corrected)
