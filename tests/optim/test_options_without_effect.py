"""No option is dropped in silence: one that a composition has no use for is refused in one line that names it."""

import pytest
import torch
from problem import BATCH
from torch import nn

from qat_vsam.errors import ConfigError, InputError
from qat_vsam.optim import (
    FAMILY,
    LESAM,
    PSF,
    SAM,
    SAMON,
    VSAM,
    Adaptive,
    AscendPart,
    BudgetSchedule,
    EveryStep,
    GradientNormSchedule,
    Lookahead,
    LookSAM,
    LossBound,
    LossIncrease,
    OrthogonalPSF,
    Perturbation,
    RandomSteps,
    Selected,
    SharpnessAware,
    Split,
    SplitSGD,
    VarianceSchedule,
    VSAMPaper,
    options_of,
    write_out,
)

HALF, NORMS = EveryStep(0.5), VarianceSchedule(warmup_steps=1)
IDLE = {
    "budget-beside-interval": (VSAM, {"interval": 3, "gradient_budget": 1.5}, "gradient_budget"),
    "share-of-the-whole-batch": (VSAM, {"method": "interval", "share": 0.5}, "share"),
    "length-spent-evenly": (VSAM, {"total_steps": 10}, "total_steps"),
    "length-spent-by-rate": (VSAM, {"total_steps": 10, "spend": "learning_rate"}, "total_steps"),
    "reuse-without-h": (VSAM, {"method": "ascend_part", "reuse": 0.7}, "reuse"),
    "type-of-nothing": (VSAM, {"psf_dtype": "bfloat16"}, "psf_dtype"),
    "bound-on-another-radius": (VSAM, {"perturbation": "loss_increase"}, "largest_rise"),
    "bound-on-a-given-radius": (VSAM, {"perturbation": Perturbation(radius=LossBound(0.1))}, "largest_rise"),
    "schedule-of-vsam": (VSAM, {"schedule": "variance"}, "schedule"),
    "own-schedule-of-vsam": (VSAM, {"schedule": EveryStep()}, "schedule"),
    "type-of-nothing-published": (
        VSAMPaper,
        {"warmup_steps": 1, "reuse": 0.0, "psf_dtype": torch.bfloat16},
        "psf_dtype",
    ),
    "seed-beside-uniform": (VSAMPaper, {"warmup_steps": 1, "seed": 3, "uniform": lambda step: 0.5}, "seed"),
    "type-of-nothing-across": (LookSAM, {"alpha": 0.0, "psf_dtype": "bfloat16"}, "psf_dtype"),
    "tail-of-no-length": (LESAM, {"tail": 0.5}, "tail"),
    "perturbation-of-the-control": (SplitSGD, {"perturbation": "adaptive"}, "perturbation"),
    "roles-of-the-control": (SplitSGD, {"perturbed_roles": ("weight",)}, "perturbed_roles"),
    "dropout-of-one-pass": (SplitSGD, {"dropout": "redraw"}, "dropout"),
    "dropout-of-a-look-ahead": (FAMILY["msam"], {"dropout": "redraw"}, "dropout"),
    "looks-that-are-not-taken": (SAM, {"nonfinite": "skip", "check_every": 5}, "check_every"),
    "part-of-a-selection": (
        SharpnessAware,
        {"method": Selected(), "schedule": HALF},
        "share of the schedule",
    ),
    "part-of-a-look-ahead": (
        SharpnessAware,
        {"method": Lookahead(), "schedule": HALF},
        "share of the schedule",
    ),
    "reuse-of-a-selection": (SharpnessAware, {"method": Selected(), "psf": PSF(0.7)}, "reuse"),
    "reuse-of-a-split": (SharpnessAware, {"method": Split(), "psf": OrthogonalPSF()}, "reuse"),
    "norms-of-no-h": (
        SharpnessAware,
        {"method": AscendPart(), "schedule": NORMS},
        "schedule",
    ),
    "look-before-a-look-ahead": (
        SharpnessAware,
        {"method": Lookahead(), "schedule": GradientNormSchedule(total_steps=9)},
        "schedule",
    ),
}


@pytest.mark.parametrize(("kind", "options", "key"), IDLE.values(), ids=IDLE)
def test_an_option_without_effect_is_refused_in_one_line_that_names_it(problem, kind, options, key):
    with pytest.raises(ConfigError, match=f"^{key}: got .*; expected .*; ") as told:
        kind(problem().weights, torch.optim.SGD, lr=0.1, **options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("nonfinite", ["raise", "stop", "ignore", "skip", None])
def test_beside_a_scaler_there_is_one_policy(problem, nonfinite):
    options = {"lr": 0.1, "nonfinite": nonfinite}
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = SAM(problem().weights, torch.optim.SGD, grad_scaler=disabled, **options)
    assert optimizer.monitor.nonfinite == (nonfinite or "raise")
    scaler = torch.amp.GradScaler("cpu")
    if nonfinite in ("skip", None):
        assert SAM(problem().weights, torch.optim.SGD, grad_scaler=scaler, **options).monitor.nonfinite == "skip"
        return
    with pytest.raises(ConfigError, match=r"^nonfinite: got .*expected \"skip\" with a grad_scaler"):
        SAM(problem().weights, torch.optim.SGD, grad_scaler=scaler, **options)


def test_schedules_refuse_a_length_that_they_do_not_read():
    with pytest.raises(ConfigError, match=r"^total_steps: got 9; expected none with spend='evenly'"):
        BudgetSchedule(1.25, 0.5, total_steps=9)
    with pytest.raises(ConfigError, match=r"^total_steps: got 9; expected none with a probability"):
        RandomSteps(0.5, total_steps=9)


def test_what_vsam_is_told_twice_may_agree(problem):
    twice = VSAM(problem().weights, torch.optim.SGD, lr=0.1, interval=4, share=0.5, gradient_budget=1.125)
    assert (twice.schedule.share, twice.schedule.gradient_budget) == (0.5, 1.125)
    whole = VSAM(problem().weights, torch.optim.SGD, lr=0.1, method="interval", share=1.0)
    assert whole.schedule.share == 1.0


def groups_by_role():
    weight, norm = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    return weight, norm, [{"params": [weight], "role": "weight"}, {"params": [norm], "role": "norm"}]


@pytest.mark.parametrize("member", [SAM, VSAM])
def test_roles_rule_a_perturbation_that_is_given_and_leave_it_as_it_was(member):
    given = Perturbation(scale=Adaptive())
    weight, norm, groups = groups_by_role()
    options = {"interval": 1} if member is VSAM else {}
    optimizer = member(
        groups, torch.optim.SGD, lr=0.0, perturbation=given, perturbed_roles=("norm",), rho=0.01, **options
    )
    moved = []

    def closure(rows=slice(None)):
        optimizer.zero_grad()
        moved.append([not torch.equal(p.detach(), torch.tensor([1.0, 2.0])) for p in (weight, norm)])
        loss = (weight**2 * norm**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure, batch_size=BATCH)
    assert moved[:2] == [[False, False], [False, True]]
    assert given.roles == ("weight",)
    assert type(given.radius).__name__ == "FixedRadius"


def test_roles_rule_a_member_that_is_made_of_one():
    _, _, groups = groups_by_role()
    model = nn.LayerNorm(2)
    groups[1]["params"] = list(model.parameters())
    assert SAMON(groups, torch.optim.SGD, model=model, lr=0.1).perturbation.roles == ("norm",)
    with pytest.raises(InputError, match=r"^perturbation: got \"norm_only\""):
        SAMON(groups, torch.optim.SGD, model=model, lr=0.1, perturbed_roles=("weight",))


def test_a_radius_of_a_group_that_is_not_displaced_is_refused():
    _, _, groups = groups_by_role()
    groups[1]["rho"] = 0.3
    with pytest.raises(ConfigError, match=r"^rho: got 0.3 for a group of the role 'norm', which is not displaced"):
        SAM(groups, torch.optim.SGD, lr=0.1)
    assert SAM(groups, torch.optim.SGD, lr=0.1, perturbed_roles=("weight", "norm")).param_groups[1]["rho"] == 0.3
    with pytest.raises(ConfigError, match=r"^rho: got 0.3"):
        SplitSGD([{"params": [nn.Parameter(torch.ones(2))], "rho": 0.3}], torch.optim.SGD, lr=0.1)
    _, norm, groups = groups_by_role()
    optimizer = SAM(groups[:1], torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError, match=r"^rho: got 0.3"):
        optimizer.add_param_group({"params": [norm], "role": "norm", "rho": 0.3})
    assert len(optimizer.param_groups) == 1


# another value of each option that all members have, and where it is to be seen
OTHERS = {
    "perturbation": ("loss_increase", lambda o: isinstance(o.perturbation.radius, LossIncrease)),
    "perturbed_roles": (("weight", "norm"), lambda o: o.perturbation.roles == ("weight", "norm")),
    "rho": (0.0123, lambda o: o.param_groups[0]["rho"] == 0.0123),
    "dropout": ("redraw", lambda o: o.dropout == "redraw"),
    "nonfinite": ("stop", lambda o: o.monitor.nonfinite == "stop"),
    "check_every": (7, lambda o: o.monitor.check_every == 7),
    "perturbation_sync": ("off", lambda o: o.ranks.sync == "off"),
    "max_grad_norm": (2.5, lambda o: o.max_grad_norm == 2.5),
    "grad_scaler": (torch.amp.GradScaler("cpu"), lambda o: o.loss_scale is not None),
}


def test_every_member_takes_or_refuses_each_option_that_all_have(any_task, member):
    kind, task = FAMILY[member.name], any_task()
    assert set(OTHERS) | {"model", "method", "schedule", "psf"} == set(options_of(SharpnessAware))
    for name, (value, seen) in OTHERS.items():
        options = {**member.options, name: value}
        if name == "perturbation" and kind is VSAM:
            options["largest_rise"] = None
        if name in options_of(kind):
            assert seen(kind(task.weights, torch.optim.SGD, model=task.model, lr=0.1, momentum=0.9, **options)), name
            continue
        assert name in kind.settles
        with pytest.raises((ConfigError, TypeError), match=name):
            kind(task.weights, torch.optim.SGD, model=task.model, lr=0.1, momentum=0.9, **options)


def test_options_written_out_build_the_optimizer_that_they_were_written_for(any_task, member):
    options = write_out(FAMILY[member.name], member.options)
    assert write_out(FAMILY[member.name], options) == options
    ours, theirs = any_task(), any_task()
    first = member.build(ours)
    del options["model"]
    second = FAMILY[member.name](
        theirs.weights, torch.optim.SGD, model=theirs.model, lr=0.05, momentum=0.9, weight_decay=1e-3, **options
    )
    for _ in range(20):
        ours.step(first)
        theirs.step(second)
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, theirs.weights, strict=True))
