"""Numbers in the sentences of the README and of what was found, made anew from the rows: whoever
changes the rows learns which sentences speak of them.
"""

import json
import re

from deepatlas import evidence, places, sweeps
from deepatlas.evaluation.statistics import holm
from deepatlas.evidence.gains import gain_by_seed

import pandas as pd
from scipy import stats

FOUND = places.RESULTS / "README.md"


def says(page, form, numbers):
    """Fail unless the ``page`` (of the README: what it finds) says this of the ``numbers``, in its
    sentences, not in a table made from the rows; they write no 0 before a point.
    """
    text = page.read_text(encoding="utf-8")
    if page == places.README:
        text = text[text.index("## What it finds") : text.index("## Speed")]
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
    said(
        "by {:.1f}, {:.1f} and {:.1f}; the runs made again",
        more("segmentation", "semi_seg", "seg_baseline"),
    )
    teacher = of("segmentation", "semi_seg")
    each = teacher[["gain", "low", "high"]].to_numpy().flatten()
    said(
        "{:+.1f} [{:+.1f}, {:+.1f}], {:+.1f} [{:+.1f}, {:+.1f}] and {:+.1f} [{:+.1f}, {:+.1f}]",
        each,
    )
    first = evidence.load_results(places.FIRST_RESULTS)
    first = first[(first["changed"] == "") & (first["recipe"] == "best")]
    of_first = evidence.gains(first[(first["labelled"] == 1) & (first["task"] == "segmentation")])
    as_long = of_first[of_first["against"] == "semi_seg_control"]["gain"]
    assert len(as_long) == 4
    said("had {:.1f} to {:.1f} at N = 1 over one", [as_long.min(), as_long.max()])
    for against in ("reg_baseline", "semi_reg"):
        found = of("registration", against)
        assert ((found["low"] < 0) & (found["high"] > 0)).all()
    said("bring {:.1f}, {:.1f} and {:.1f} points", more("registration", "reg_full", "reg_baseline"))
    refined = of("registration", "reg_baseline_refined")
    said("has {:.1f} and {:.1f} points more than the refined", refined["gain"].iloc[1:])
    said("on OASIS-35 {:+.1f} [{:+.1f}, {:+.1f}]", refined[["gain", "low", "high"]].iloc[0])
    said("{:.1f}, {:.1f} and {:.1f} points more than SyN", of("registration", "ants_cc")["gain"])
    said("({:.1f}, {:.1f} and {:.1f} more than each pair", of("registration", "optimise")["gain"])
    said(
        "the refined baseline has {:.1f}, {:.1f} and {:.1f} more than SyN",
        more("registration", "reg_baseline_refined", "ants_cc"),
    )
    said(
        "not refined, {:.1f}, {:.1f} and {:.1f} less", more("registration", "ants_cc", "deepatlas")
    )
    of_runs = rows[rows["task"] == "registration"].groupby(["regime", "run"])["dice"].mean()
    assert (of_runs["deepatlas_refined"] > of_runs["reg_full"]).all()  # which is no ceiling
    brains = rows[(rows["dataset"] == "phantom-brain") & (rows["task"] == "registration")]
    refined = ("deepatlas_refined", "reg_baseline_refined", "endpoint_voxels")
    farther = evidence.gain(brains, *refined)
    assert min(gain_by_seed(brains, *refined).values()) > 0
    found = [errors["reg_baseline_refined"]["phantom-brain"], farther["gain"], farther["p"]]
    said("images alone ({:.2f}; {:.2f} more, in each run, p = {:.2f}, not", found)
    for one, other, form in (
        ("deepatlas_refined", None, "is {:.2f} voxels from it on brains and {:.2f} on knees"),
        ("ants_cc", None, "SyN ({:.2f} and {:.2f})"),
        ("optimise", None, "from coarse to fine ({:.2f} and {:.2f})"),
        ("deepatlas", "reg_baseline", "worse ({:+.2f} voxels"),
    ):
        found = errors[one] if other is None else errors[one] - errors[other]
        said(form, found.loc[cohorts[1:]])
    said("on knees as far ({:.2f})", [errors["reg_baseline_refined"]["phantom-knee"]])
    tried = pd.read_csv(places.README.parent / "benchmarks" / "peers" / "tuning.csv")
    tried = tried[(tried["rival"] == "optimise") & (tried["dataset"] == "phantom-brain")]
    settings = tried["settings"].map(json.loads).apply(pd.Series)
    tried = tried[(settings["regularity"] == 0.2) & (settings["window"] == 5)]
    said("had {:.2f} on trial scans", tried["endpoint_voxels"])

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
        ("the true error is below", "p", "voxels, p = {:.2f}, not corrected; made"),
    ):
        (claim,) = [one for one in by_name.index if name in one]
        assert by_name.loc[claim, "decision"] == "not shown"
        said(place, [by_name.loc[claim, p]])


def contrast(values):
    """Mean over runs, 95 % interval and p of Student's t, in words."""
    found = stats.ttest_1samp(values, 0)
    ends = found.confidence_interval()
    p = f"{found.pvalue:.3f}" if found.pvalue >= 0.001 else "< .001"
    return f"{values.mean():+.1f} [{ends.low:+.1f}, {ends.high:+.1f}], {p}"


def test_what_is_said_of_the_anatomy_term_and_of_the_warped_scan_is_what_their_rows_say():
    rows = sweeps.read_table(places.RESULTS, "regimes")
    rows = rows[(rows["dims"] == 2) & (rows["labelled"] == 1)]
    alone = rows[rows["changed"].str.contains("regimes=joint")]
    assert alone["changed"].str.contains("precision=float32").all()
    leaves_out = {
        "term": alone["changed"].str.contains("sampled_warps=False"),
        "warps": alone["changed"].str.contains("lambda_a=0.0"),
        "both": ~alone["changed"].str.contains("lambda_a|sampled_warps"),
    }
    kinds = {kind: alone[which] for kind, which in leaves_out.items()}
    assert [some["run"].nunique() for some in kinds.values()] == [15, 15, 15]

    def dice(some, task, regime):
        of_regime = some[(some["task"] == task) & (some["regime"] == regime)]
        return of_regime.set_index(["dataset", "seed"])["Dice %"].sort_index()

    gained = {}
    for task, baseline in (("segmentation", "seg_baseline"), ("registration", "reg_baseline")):
        neither = dice(kinds["both"], task, baseline)
        reached = {kind: dice(some, task, "deepatlas") for kind, some in kinds.items()}
        for some in kinds.values():  # trained by the same steps: to the bit
            assert (dice(some, task, baseline) == neither).all()
        for cohort, name in (
            ("oasis35", "OASIS-35"),
            ("phantom-brain", "brains"),
            ("phantom-knee", "knees"),
        ):
            base, of = neither[cohort], {kind: found[cohort] for kind, found in reached.items()}
            cells = [f"{task}, {name}", *(f"{one.mean():.1f}" for one in (base, *of.values()))]
            cells += [contrast(of[kind] - base) for kind in ("term", "warps", "both")]
            cells += [contrast(of["both"] - of[kind]) for kind in ("warps", "term")]
            told = "| " + " | ".join(cells) + " |"
            says(FOUND, "{}", [told])
        gained[task] = {
            kind: list((found - neither).groupby("dataset").mean())
            for kind, found in reached.items()
        }
        if task == "segmentation":
            more = (reached["warps"] - reached["term"])["oasis35"]
            told = [stats.ttest_1samp(more, 0).pvalue]
            says(places.README, "on OASIS-35 more (p = {:.3f}, not corrected", told)
    each = gained["segmentation"]
    others = [*each["term"], *each["both"]]
    form = "{:.1f}, {:.1f} and {:.1f}"
    for page in (places.README, FOUND):
        says(page, f"gains {form} points over the baseline", each["warps"])
        says(page, f"without the warped scan {form}, both together {form}", others)

    # those with both are the counted runs, made again
    counted = rows[rows["changed"] == "precision=bfloat16"]
    moved, ahead = [], {}
    for task, baseline in (("segmentation", "seg_baseline"), ("registration", "reg_baseline")):
        again, first = (dice(some, task, "deepatlas") for some in (kinds["both"], counted))
        bases = [dice(some, task, baseline) for some in (kinds["both"], counted)]
        of_joint, of_gain = (again - first).abs(), (again - bases[0] - first + bases[1]).abs()
        assert len(of_joint) == len(of_gain.dropna()) == 15
        moved.append([of_joint.median(), of_joint.max(), of_gain.max()])
        ahead[task] = again - bases[0], first - bases[1]
    told = [*moved[0][:2], *moved[1][:2], moved[0][2], moved[1][2]]
    says(
        FOUND,
        "by {:.1f} in the median and by up to {:.1f} in segmentation, by {:.1f} and up to {:.1f} "
        "in registration; what it gains over the baseline of the run by up to {:.1f} and {:.1f}.",
        told,
    )
    assert (ahead["segmentation"][0] > 0).sum() == 14
    says(places.README, f"fourteen of fifteen, by {form})", each["both"])
    again, first = (list(gain.groupby("dataset").mean()) for gain in ahead["registration"])
    says(places.README, f"({form} points; made again {form}, of", [*first, *again])
    brains = ahead["registration"][0]["phantom-brain"]
    says(places.README, "brains has p = {:.2f}, not", [stats.ttest_1samp(brains, 0).pvalue])
    errors = {}  # of registration, beyond those of the baseline
    for kind, some in kinds.items():
        of_regime = some.set_index(["regime", "dataset", "seed"])["error voxels"].dropna()
        errors[kind] = of_regime["deepatlas"] - of_regime["reg_baseline"]
        for cohort in ("phantom-brain", "phantom-knee"):
            assert stats.ttest_1samp(errors[kind][cohort], 0).pvalue > 0.05
    worse = errors["both"]["phantom-brain"]
    told = [worse.mean(), stats.ttest_1samp(worse, 0).pvalue]
    says(places.README, "made again {:+.2f}, p = {:.2f})", told)
    term = dice(kinds["both"], "segmentation", "deepatlas")
    term -= dice(kinds["warps"], "segmentation", "deepatlas")
    synthetic = term[["phantom-brain", "phantom-knee"]]
    assert (synthetic > 0).all() and len(synthetic) == 10
    told = list(synthetic.groupby("dataset").mean())
    says(places.README, "the term adds {:.1f} and {:.1f}, in each of ten runs", told)
    real = [gain.groupby("dataset").mean()["oasis35"] for gain in ahead["segmentation"]]
    says(FOUND, "on OASIS-35 by {:.1f} instead of {:.1f}.", real)

    first = sweeps.read_table(places.FIRST_RESULTS, "regimes")
    knees = first[(first["dataset"] == "phantom-knee") & (first["labelled"] == 1)]
    knees = knees[(knees["seed"] == 0) & (knees["label_seed"] == 0) & (knees["recipe"] == "best")]
    knees = knees[knees["task"] == "segmentation"].set_index(["changed", "regime"])["Dice %"]
    as_long = knees["", "seg_control"]
    prefix = "regimes=joint "
    three = [
        knees[changed, "deepatlas"] - as_long
        for changed in (f"{prefix}sampled_warps=False", "", f"{prefix}lambda_a=0.0")
    ]
    form = "{:.1f} points over the baseline that trained as long, {:.1f} with both, {:.1f} without"
    says(FOUND, form, three)
    first = first[(first["recipe"] == "paper") & (first["task"] == "segmentation")]
    first = first[(first["changed"] == "regimes=joint") & (first["labelled"] == 1)]
    assert first["run"].nunique() == 9
    means = first.groupby(["regime", "dataset"])["Dice %"].mean()
    gained_by_paper = means["deepatlas"] - means["seg_baseline"]
    each = first.pivot(index="run", columns="regime", values="Dice %")
    each = each["deepatlas"] - each["seg_baseline"]
    ends = [gained_by_paper.min(), gained_by_paper.max(), each.min(), each.max()]
    form = "their shorter baselines {:.1f} to {:.1f} in the means of three, {:.1f} to {:.1f} by"
    says(FOUND, form, ends)


def test_what_is_said_of_runs_made_twice_is_what_their_rows_say():
    rows = sweeps.read_table(places.RESULTS, "regimes")
    keys = ["dataset", "seed", "task", "regime"]
    again = sweeps.read_table(places.RESULTS / "again", "regimes")
    both = rows[rows["changed"] == "precision=bfloat16"].merge(again, on=keys)
    both = both[both["regime"] != "identity"]
    moved = (both["Dice %_y"] - both["Dice %_x"]).abs()
    says(
        FOUND,
        "moved by {:.1f} points of Dice in the median and by up to {:.1f}",
        [moved.median(), moved.max()],
    )
    of_task = moved.groupby(both["task"]).max()
    difference = both.pivot(
        index=["dataset", "task"], columns="regime", values=["Dice %_x", "Dice %_y"]
    )
    changes = {}
    for task, semi in (("segmentation", "semi_seg"), ("registration", "semi_reg")):
        gains = [
            difference[one]["deepatlas"] - difference[one][semi] for one in ("Dice %_x", "Dice %_y")
        ]
        changes[task] = (gains[1] - gains[0]).abs().xs(task, level="task").max()
    told = [of_task["segmentation"], changes["segmentation"]]
    says(
        places.README,
        "segmentation moved by up to {:.1f} points and this difference by up to {:.1f}",
        told,
    )
    told = [of_task["registration"], changes["registration"]]
    says(places.README, "registration {:.1f} and {:.1f}; means", told)

    small = rows[(rows["dims"] == 2) & rows["regime"].isin(["seg_baseline", "reg_baseline"])]
    without = small["changed"].str.contains("lambda_a=0.0")
    counted = small["changed"] == "precision=bfloat16"
    beside = small[counted].merge(small[without], on=keys)
    moved = (beside["Dice %_y"] - beside["Dice %_x"]).abs()
    assert len(moved) == 30
    says(
        FOUND,
        "moved by {:.1f} in the median, and one of them, a registration of knees, by {:.1f}",
        [moved.median(), moved.max()],
    )
    says(places.README, "by up to {:.1f}, where the precision", [moved.max()])


def test_what_is_said_of_runs_on_a_gpu_is_what_their_rows_say():
    rows = evidence.load_results(places.RESULTS / "gpu")
    table = evidence.gains(rows).set_index(["dataset", "dims", "labelled", "task", "against"])
    hippocampus = table.loc["hippocampus"].loc[3]

    def found(labelled, task, against):
        return hippocampus.loc[(labelled, task, against), ["gain", "low", "high"]]

    registration = found(1, "registration", "reg_baseline")
    for where in (FOUND, places.README):
        says(where, "gains {:.1f} points [{:.1f}, {:.1f}] over the baseline", registration)
    says(
        places.README,
        "({:.1f} [{:.1f}, {:+.1f}]) nothing",
        found(1, "segmentation", "seg_baseline"),
    )
    says(FOUND, "segmentation {:.1f} [{:.1f}, {:+.1f}]", found(1, "segmentation", "seg_baseline"))
    says(FOUND, "it is {:.1f} again", [found(5, "registration", "reg_baseline")["gain"]])
    of_five = hippocampus.loc[(5, "segmentation", "seg_baseline"), ["gain", "low", "high", "p"]]
    says(FOUND, "and {:.1f} [{:.1f}, {:.1f}], p = {:.2f}, not corrected.", of_five)
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
    of_slices = evidence.load_results(places.RESULTS)
    of_slices = of_slices[(of_slices["changed"] == "") & (of_slices["task"] == "registration")]
    dice = of_slices.groupby(["regime", "dataset", "run"])["dice"].mean()
    dice = dice.groupby(level=[0, 1]).mean()
    given = dice["reg_full"] - dice["reg_baseline"]
    says(FOUND, "there {:.1f} to {:.1f}.", [given.min(), given.max()])
    says(FOUND, "Over five seeds that has {:.1f}", [one["segmentation", "seg_full"]])
    seen = rows[(rows["dataset"] == "hippocampus") & (rows["labelled"] == 1)]
    seen = seen[seen["seed"].isin([11, 12]) & (seen["task"] == "segmentation")]
    assert set(rows[rows["regime"] == "dynunet"]["seed"]) == {11, 12}
    dice = seen.groupby(["regime", "run"])["dice"].mean().groupby(level=0).mean()
    four = [dice[key] for key in ("dynunet", "seg_baseline", "dynunet_full", "seg_full")]
    says(
        FOUND,
        "has {:.1f} with one label, where the baseline has {:.1f}, and {:.1f} with all, where full "
        "supervision has {:.1f}",
        four,
    )
    knees = table.loc["phantom-knee"].loc[3].loc[1]
    of_knees = knees.loc[("registration", "reg_baseline"), ["gain", "low", "high"]]
    says(FOUND, "registration gains {:.1f} points [{:.1f}, {:.1f}], in each run", of_knees)
    gained = knees.loc[("segmentation", "seg_baseline"), "gain"]
    says(FOUND, "segmentation {:.1f} (7.2 in one run)", [gained])
    says(
        FOUND, "({:+.2f} voxels)", [knees.loc[("registration", "reg_baseline"), "endpoint_voxels"]]
    )
    refined = ("deepatlas_refined", "reg_baseline_refined", "endpoint_voxels")
    of_volumes = rows[(rows["dataset"] == "phantom-knee") & (rows["task"] == "registration")]
    of_volumes = of_volumes[of_volumes["dims"] == 3]
    farther = gain_by_seed(of_volumes, *refined).values()
    assert len(farther) == 3 and min(farther) > 0.12
    says(places.README, "with {:.2f} voxels more, in each", [sum(farther) / 3])
    single = table.loc[["oasis35", "phantom-brain"], "gain"].xs((3, 1), level=["dims", "labelled"])
    two = [
        single[cohort, *of]
        for of in (
            ("registration", "reg_baseline"),
            ("segmentation", "seg_baseline"),
            ("registration", "semi_reg"),
            ("segmentation", "semi_seg"),
        )
        for cohort in ("phantom-brain", "oasis35")
    ]
    says(
        places.README,
        "(over the baseline {:.1f} and {:+.1f} in registration, {:+.1f} and {:.1f} in "
        "segmentation; over Semi-DeepAtlas, which there fell below the baseline in registration, "
        "{:+.1f} and {:+.1f}, in segmentation {:.1f} and {:+.1f})",
        two,
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


def test_what_is_said_of_means_that_hang_on_single_cases_is_what_their_rows_say():
    rows = evidence.load_results(places.RESULTS)
    rows = rows[(rows["dataset"] == "phantom-knee") & (rows["changed"] == "")]
    rows = rows[rows["labelled"].isin([0, 1])].set_index("regime")
    lost = rows.loc["ants_propagation", "dice"].nsmallest(1)
    without = rows.loc["ants_propagation", "dice"].sort_values()[1:].mean()
    says(FOUND, "{:.1f} % (without it its mean is {:.1f})", [lost.iloc[0], without])
    says(places.README, "loses (without it {:.1f})", [without])
    splines = rows.loc["sitk_bspline", "endpoint_voxels"].sort_values()
    says(FOUND, "of {:.0f} voxels (without it {:.1f})", [splines.iloc[-1], splines[:-1].mean()])
    says(places.README, "they lose (without it {:.1f})", [splines[:-1].mean()])
    pairs = rows.loc["optimise", "endpoint_voxels"].sort_values()
    says(places.README, "on two (without them {:.1f})", [pairs[:-2].mean()])


def test_what_is_said_of_dynunet_on_slices_is_of_the_seeds_that_it_has():
    rows = evidence.load_results(places.RESULTS)
    rows = rows[(rows["dataset"] == "oasis35") & (rows["task"] == "segmentation")]
    rows = rows[(rows["labelled"] == 1) & (rows["changed"] == "")]
    assert set(rows[rows["regime"] == "dynunet"]["seed"]) == {10, 11, 12}
    some = rows[rows["seed"].isin([10, 11, 12])]
    dice = some.groupby(["regime", "run"])["dice"].mean().groupby(level=0).mean()
    two = [dice[key] for key in ("seg_baseline", "seg_full")]
    says(places.README, "where the baseline has {:.1f} and full supervision {:.1f}", two)
