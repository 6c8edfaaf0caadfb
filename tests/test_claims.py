"""`rmsprop-jax claims`: the rules, the shared training, the theory and the command."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmsprop_jax import cli, rmsprop
from rmsprop_jax.claims import (
    adam,
    averages,
    claim,
    command,
    contenders,
    drift,
    epsilon,
    noise,
    problems,
    recurrence,
    recurrent,
    scales,
)
from rmsprop_jax.claims.grid import POINTS, Plan, sweep
from rmsprop_jax.claims.sweep import Runs, Sweep
from rmsprop_jax.claims.verdict import (
    MARGIN,
    OUTCOMES,
    WORDS,
    Criterion,
    Statement,
    better,
    equal,
    where,
    word,
)
from rmsprop_jax.lab import statistics

pytestmark = [pytest.mark.slow, pytest.mark.promotion]

LOW, HIGH, WIDE = [-1.0, -1.1, -0.9], [1.0, 1.1, 0.9], [-1.0, 1.0, 0.1]
PLAN = Plan(seeds=3, tuning=2)


@pytest.mark.parametrize(
    ("rows", "verdict", "counts"),
    [
        ([LOW, LOW], "holds", (2, 0, 0)),
        ([LOW, HIGH], "mixed", (1, 0, 1)),
        ([LOW, WIDE], "open", (1, 1, 0)),
        ([WIDE, WIDE], "open", (0, 2, 0)),
        ([HIGH, WIDE], "open", (0, 1, 1)),
        # Better, but by less than a tenth.
        ([[-0.02, -0.021, -0.019]], "does not hold", (0, 0, 1)),
        # Without any noise, on the boundary.
        ([[-MARGIN] * 3], "does not hold", (0, 0, 1)),
    ],
)
def test_verdicts_of_planted_numbers(rows, verdict, counts):
    rows = np.asarray(rows)
    names = [f"at {i}" for i in range(len(rows))]
    found = Statement("claim", "rule", better("group", names, rows)).judged()
    assert found["verdict"] == verdict
    assert tuple(found["counts"].values()) == counts
    if len(rows) > counts[0] > 0:
        assert found["when"] == "group: at 0"
        assert "at 1" in found["not_when"] + found["open_when"]


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((21, 0, 0), "holds"),
        ((20, 1, 0), "mostly holds"),
        ((3, 0, 1), "mostly holds"),
        ((7, 1, 20), "mixed"),
        ((5, 0, 15), "mostly not"),
        ((1, 0, 20), "mostly not"),
        ((0, 1, 20), "mostly not"),
        ((0, 0, 21), "does not hold"),
        ((4, 4, 0), "open"),
        ((1, 9, 0), "open"),
    ],
)
def test_a_verdict_is_a_word_for_the_counts(counts, verdict):
    assert word(dict(zip(OUTCOMES, counts, strict=True))) == verdict
    assert verdict in WORDS


def test_settings_in_a_row_are_named_by_their_ends():
    def criteria(*ats, group="g"):
        return [{"group": group, "at": at} for at in ats]

    every = criteria("1", "2", "3", "4", "5") + criteria("a", "b", group="h")
    assert where(every, every) == "g: 1 to 5; h: a, b"
    assert where(criteria("3", "4", "5"), every) == "g: 3 and after"
    assert where(criteria("1", "2", "3"), every) == "g: up to 3"
    assert where(criteria("2", "4", "5"), every) == "g: 2, 4, 5"
    assert where([], every) == ""


def test_intervals_of_a_statement_hold_together():
    samples = np.array([-0.5, -0.1, -0.9, -0.4])

    def ends(number):
        criteria = better("g", ["a"] * number, np.tile(samples, (number, 1)))
        return Statement("c", "r", criteria).judged()["criteria"][0]["interval"]

    assert ends(1) == pytest.approx(statistics.interval(samples, 0.05))
    assert ends(10) == pytest.approx(statistics.interval(samples, 0.005))
    assert ends(10)[0] < ends(1)[0] < samples.mean() < ends(1)[1] < ends(10)[1]
    p = statistics.compared(samples + 2, np.full(4, 2.0))["p"]
    touching = statistics.interval(samples, p)
    assert min(map(abs, touching)) == pytest.approx(0, abs=1e-9)


def test_a_range_has_two_ends():
    inside, beside = np.array([0.01, 0.0, -0.01]), np.array([0.2, 0.21, 0.19])
    outcomes = [c.judged(0.05)["outcome"] for c in equal("", "ab", [inside, beside])]
    assert outcomes == ["met", "contradicted"]
    assert Criterion("", "", beside, low=0.1).judged(0.05)["outcome"] == "met"


def planted(factors, settings=("a",), rates=(0.1, 1.0, 10.0), spoil=False):
    """A sweep whose tuned measures are the factors, best at the middle rate.

    Args:
      factors: by optimizer, a number or one for each setting.
      settings: their names.
      rates: of every optimizer.
      spoil: whether in the reported seeds alone another rate is better.
    """
    random = np.random.default_rng(0)
    runs = {}
    for name in contenders.CONTENDERS:
        factor = np.broadcast_to(factors.get(name, 1.0), len(settings))
        shape = (POINTS, len(settings), len(rates), 6)
        values = np.exp(0.01 * random.standard_normal(shape))
        values *= factor[:, None, None]
        values *= 10.0 ** np.abs(np.log10(rates))[:, None]
        if spoil:
            values[:, :, 0, 2:] = 1e-5
        runs[name] = Runs(np.asarray(rates), values)
    return Sweep(tuple(settings), runs, 100, 2, False, (1e-8, 1e2))


def verdicts(claim, found):
    return [statement.judged()["verdict"] for statement in claim.judge(found)]


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"rmsprop": 0.1}, "holds"),
        ({"rmsprop": [0.1, 3.0]}, "mixed"),
        ({"rmsprop": 1.0}, "does not hold"),
        ({"rmsprop": 0.1, "sgd momentum": 0.01}, "does not hold"),
    ],
)
def test_other_numbers_give_another_verdict(factors, expected):
    found = {"along the axes": planted(factors, ("1", "100"))}
    assert verdicts(scales, found) == [expected]


def test_numbers_decide_about_drift_noise_and_adam():
    names = {drift.DRIFTING: ("0", "0.1"), drift.STREAM: ("never", "every 5 steps")}

    def changed(factors):
        return {name: planted(factors, settings) for name, settings in names.items()}

    assert verdicts(drift, changed({"rmsprop": 0.1})) == ["holds", "holds"]
    # What does not change plays no part.
    still = changed({"rmsprop": [9.0, 0.1]})
    assert verdicts(drift, still) == ["holds", "holds"]
    slow = changed({"adagrad": 0.1})
    assert verdicts(drift, slow) == ["does not hold", "holds"]
    noises = {noise.HEAVY: planted({}, ("normal", "Cauchy"))}
    assert verdicts(noise, noises) == ["holds", "does not hold"]
    noises = {noise.HEAVY: planted({"sgd": 0.1}, ("normal", "Cauchy"))}
    assert verdicts(noise, noises)[0] == "does not hold"
    data = {"digits, batch 4": planted({"adam": 0.1})} | changed({"adam": 10.0})
    assert verdicts(adam, data) == ["mostly not", "does not hold", "mixed"]


def test_numbers_decide_about_rnns():
    sweeps = {
        name: planted({"rmsprop": 1e-3}, (recurrent.FREE, recurrent.CLIPPED))
        for name in ("plain RNN, 50", "planted weight, 50", "GRU, 50")
    }
    same = {cell: np.zeros((2, 4)) for cell in recurrence.CELLS}
    found = recurrent.Found(sweeps, (50, 500), same, same, same)
    assert verdicts(recurrent, found) == ["holds"] * 4
    fading = {cell: np.array([[0.0] * 4, [-3.0] * 4]) for cell in recurrence.CELLS}
    found = dataclasses.replace(found, signal=fading)
    assert verdicts(recurrent, found)[2] == "mixed"
    found = dataclasses.replace(found, step=fading)
    assert verdicts(recurrent, found)[0] == "does not hold"
    guesses = {name: planted({}, found.settings) for name, found in sweeps.items()}
    found = dataclasses.replace(found, sweeps=guesses)
    assert verdicts(recurrent, found)[3] == "does not hold"


def test_rates_are_chosen_on_seeds_that_are_not_reported():
    honest, spoilt = planted({}), planted({}, spoil=True)
    for found in (honest, spoilt):
        assert found.best("rmsprop") == [1]
        assert found.tuned("rmsprop").shape == (1, 4)
    np.testing.assert_array_equal(honest.tuned("adam"), spoilt.tuned("adam"))


def test_of_rates_that_all_solve_a_problem_the_middle_is_chosen():
    found = planted({"adam": 1e-12}, rates=(0.01, 0.1, 1.0, 10.0, 1e9))
    assert found.best("adam") == [2]
    assert (found.scores("adam")[0, :4] == -8).all()


def test_ranges_of_rates_are_in_decades():
    assert planted({}, rates=(0.1, 1.0, 10.0)).width("sgd") == pytest.approx(1.0)
    found = planted({}, rates=(0.1, 0.6, 1.0, 1.7, 10.0))
    assert found.width("sgd") == pytest.approx(3 * 2 / 4)


def test_what_diverged_gets_the_upper_bound_even_if_it_came_back():
    found = planted({})
    found.runs["sgd"].values[-1, 0, 1] = np.nan
    assert found.best("sgd") != [1]
    found = dataclasses.replace(planted({}), limit=50.0)
    found.runs["sgd"].values[3, 0, 1] = 60.0
    assert (found.scores("sgd")[0, 1] == 2.0).all()


@pytest.mark.parametrize("online", [False, True])
def test_the_program_is_the_plain_loop(online):
    problem = problems.quadratics(2 * POINTS, online)
    settings = {
        "drift": problems.quadratic(condition=10.0, noise=0.3, speed=0.1, tails=1.0),
        "jumps": problems.quadratic(condition=5.0, rotated=1.0, period=3.0, units=1.0),
    }
    rates = (1e-3, 1e-2, 1e-1)
    grid = dict.fromkeys(contenders.CONTENDERS, rates)
    found = sweep(problem, contenders.CONTENDERS, settings, grid, PLAN, extensions=0)

    def plain(tx, setting, seed):
        setting = {key: jnp.float32(value) for key, value in setting.items()}
        key = jax.random.key(seed)
        params, world = problem.start(setting, key)
        state, values = tx.init(params), []
        for step in range(problem.steps):
            step = jnp.int32(step)
            values.append(problem.measure(world, params, key, step))
            grads = jax.grad(problem.loss, argnums=1)(world, params, key, step)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        last = problem.measure(world, params, key, jnp.int32(-1))
        return np.mean(values) if online else last

    def rate(value):
        return value if online else optax.linear_schedule(value, 0.0, problem.steps)

    for name, tx in (
        ("rmsprop", rmsprop(rate(1e-2), 0.9)),
        ("sgd momentum", optax.sgd(rate(1e-2), 0.9)),
        ("adagrad", optax.adagrad(rate(1e-2))),
    ):
        for place, setting in enumerate(settings.values()):
            value = np.log10(plain(tx, setting, 3))
            assert found.scores(name)[place, 1, 3] == pytest.approx(value, abs=1e-3)


def test_a_grid_is_moved_on_where_its_edge_is_best():
    settings = {"plain": problems.quadratic(condition=10.0)}
    grid = dict.fromkeys(contenders.CONTENDERS, (1e-3, 1e-2, 1e-1))
    run = (problems.quadratics(20, False), contenders.CONTENDERS, settings, grid, PLAN)
    stuck, moved = sweep(*run, extensions=0), sweep(*run, extensions=2)
    assert "sgd, plain: the best rate 0.1 is at the edge" in " ".join(stuck.notes())
    assert moved.runs["sgd"].rates == pytest.approx(10.0 ** np.arange(-3, 3))
    assert not moved.notes()
    assert (moved.tuned("sgd") < stuck.tuned("sgd")).all()


def test_rotation_changes_nothing_for_sgd_and_much_for_rmsprop():
    def final(rotated):
        settings = {"": problems.quadratic(condition=1e3, rotated=rotated)}
        problem = problems.quadratics(200, False)
        grid = dict.fromkeys(contenders.CONTENDERS, (0.03, 0.3))
        return sweep(problem, contenders.CONTENDERS, settings, grid, PLAN, extensions=0)

    plain, rotated = final(0.0), final(1.0)
    assert plain.tuned("sgd") == pytest.approx(rotated.tuned("sgd"), abs=1e-3)
    assert (plain.tuned("rmsprop") < rotated.tuned("rmsprop") - 1).all()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_theory_is_the_closed_form_of_the_sums(decay):
    age = np.arange(1, 10_000)
    weights = (1 - decay) * decay ** (age - 1.0)
    assert averages.lag_in_theory(decay) == pytest.approx((weights * age).sum())
    assert averages.variance_in_theory(decay) == pytest.approx((weights**2).sum())


def test_averages_follow_the_theory_and_a_wrong_one_is_seen(monkeypatch):
    monkeypatch.setattr(averages, "DECAYS", (0.5, 0.9, 0.95))
    monkeypatch.setattr(averages, "STRETCH", 200)
    found = averages.measure(Plan(seeds=8), lambda part: None)
    assert verdicts(averages, found) == ["holds", "holds"]
    assert found.overshoot.max(axis=1) == pytest.approx(
        1 / np.sqrt(1 - found.decays), rel=0.05
    )
    wrong = dataclasses.replace(found, lag=2 * found.lag)
    assert verdicts(averages, wrong) == ["holds", "mixed"]
    still = dataclasses.replace(found, lag=found.lag[:1] + 0 * found.lag)
    assert verdicts(averages, still)[0] == "mixed"


def test_products_written_out_are_products():
    random = np.random.default_rng(0)
    a, w = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((4, 8), (8, 8)))

    def loss(product):
        return lambda a, w: jnp.sum(jnp.sin(product(a, w)))

    ours = jax.value_and_grad(loss(recurrence._product), (0, 1))(a, w)
    theirs = jax.value_and_grad(loss(jnp.matmul), (0, 1))(a, w)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ours, theirs)


def test_the_planted_weight_explodes_by_its_powers():
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    short, long = (
        recurrence.instruments(recurrent.PLANTED, length, keys) for length in (100, 300)
    )
    growth = np.log10(long["signal"] / short["signal"])
    assert growth == pytest.approx(200 * math.log10(recurrence.PLANTED), abs=0.1)
    assert (long["gradient"] / short["gradient"] > 100).all()
    assert np.abs(np.log10(long["step"] / short["step"])).max() < 0.5


def test_a_stream_renames_its_classes():
    problem = problems.stream(40)
    key = jax.random.key(0)
    params, _ = problem.start({}, key)
    params = params | {"b": jnp.arange(10.0)}

    def losses(period):
        world = {"period": jnp.float32(period)}
        return [problem.loss(world, params, key, jnp.int32(s)) for s in (0, 1, 2)]

    never, every = losses(0.0), losses(2.0)
    assert every[:2] == never[:2] == losses(5.0)[:2]
    assert every[2] != never[2]
    assert losses(5.0)[2] == never[2]


def test_eps_is_where_steps_turn_over():
    sizes = np.array([1e-6, 1e-4, 1e-2])
    outside = epsilon._update(1e-4, False, sizes)
    inside = epsilon._update(1e-8, True, sizes)
    assert outside == pytest.approx(sizes / (sizes + 1e-4), rel=1e-3)
    assert inside == pytest.approx(sizes / np.sqrt(sizes**2 + 1e-8), rel=1e-3)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of two claims: the folder, and its status."""
    out = tmp_path_factory.mktemp("claims") / "new"
    options = ["--quick", "--quiet", f"--out={out}"]
    return out, cli.main(["claims", "eps", "decay", *options])


def test_the_command_writes_results_and_pictures(ran):
    out, status = ran
    assert status == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["decay.png", "eps.png", "results.json", "summary.png"]
    found = json.loads((out / "results.json").read_text())
    assert found["machine"]["jax"] == jax.__version__
    assert found["settings"]["seeds_that_choose_rates"] == [0]
    assert found["settings"]["seeds_reported"] == [1, 2, 3]
    assert list(found["claims"]) == ["eps", "decay"]
    for tested in found["claims"].values():
        for statement in tested["statements"]:
            outcomes = [c["outcome"] for c in statement["criteria"]]
            assert sum(statement["counts"].values()) == len(outcomes)
            assert (statement["verdict"] == "holds") == (set(outcomes) == {"met"})
    zeros = found["claims"]["eps"]["zeros_are_finite_without_and_with_eps"]
    assert not zeros["Optax, inside"][0]
    assert all(zeros["Optax, inside"][1:])
    assert all(zeros["this package, inside"])
    from matplotlib.image import imread

    assert imread(out / "eps.png").std() > 0.05


def test_the_table_shows_verdicts_rules_and_where(ran, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    from rmsprop_jax.claims import tables

    found = json.loads((ran[0] / "results.json").read_text())["claims"]
    tables.show(found)
    shown = capsys.readouterr().out
    for statement in found["eps"]["statements"]:
        assert statement["verdict"] in shown
        assert statement["rule"] in shown
        assert statement["when"] in shown
    assert "…" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["everything"], "names from scales, drift"),
        (["--seeds=1"], "at least 2, got '1'"),
        (["--quick", "--full"], "not allowed with argument"),
        ([f"--out={__file__}"], "a folder to write to"),
    ],
)
def test_bad_options_get_one_line(arguments, words, capsys):
    assert cli.main(["claims", *arguments]) == 2
    stdout, stderr = capsys.readouterr()
    assert not stdout
    assert stderr.count("\n") == 1
    assert words in stderr


def test_ctrl_c_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(claim, "load", interrupt)
    (tmp_path / "results.json").write_text("older")
    assert cli.main(["claims", "decay", f"--out={tmp_path}"]) == 130
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]
    assert "interrupted" in capsys.readouterr().err


def test_every_name_is_a_claim_with_that_name():
    for name, (module, _) in command.CLAIMS.items():
        assert claim.load(module).name == name
