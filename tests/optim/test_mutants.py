"""The tests can fail: each of these mistakes, made in a copy of the package, is seen by the tests named with it."""

import pytest
from mutants import Mutant, each, each_file

TWIN = "test_a_member_equals_its_twin_over_a_thousand_steps"


def twin_of(name, *edits):
    return Mutant(list(edits), "test_reference_twins.py", f"{TWIN} and {name}]")


MUTANTS = {
    "sign-of-e": Mutant(
        [("perturbation", "factor = (weight * self.radius", "factor = (-weight * self.radius")],
        "test_combinations.py",
        "euclidean-every-step",
    ),
    "missing-restore": Mutant(
        [("passes", "        copy_into(lasting, kept)", "        pass")],
        "test_step_contract.py",
        "test_at_a_learning_rate_of_zero_the_weights_come_back_bit_for_bit and sam",
    ),
    "statistics-on-in-the-second-pass": Mutant(
        [("passes", "                standing_still(optimizer.model),\n", "                nullcontext(),\n")],
        "test_second_pass_leaves_no_trace.py",
        "test_batch_norm_moves_once_a_step and sam",
    ),
    "restored-by-subtraction": Mutant(
        [
            (
                "passes",
                "        torch._foreach_add_(tensors, list(displacements.values()))",
                "        e = list(displacements.values())\n        torch._foreach_add_(tensors, e)",
            ),
            ("passes", "        copy_into(lasting, kept)", "        torch._foreach_sub_(tensors, e)"),
        ],
        "test_step_contract.py",
        "test_at_a_learning_rate_of_zero_the_weights_come_back_bit_for_bit",
    ),
    "norm-of-each-tensor": Mutant(
        [
            (
                "perturbation",
                "torch._foreach_mul([scaled[i] for i in same], factor)",
                "[rho * scaled[i] / (scaled[i].norm() + EPSILON) for i in same]",
            )
        ],
        "test_perturbation.py",
        "test_one_norm_over_all_groups",
    ),
    "radius-of-the-first-group": Mutant(
        [("perturbation", 'float(group["rho"])', 'float(groups[0]["rho"])')],
        "test_perturbation.py",
        "test_one_norm_over_all_groups",
    ),
    "batch-norm-counted-with-both-parts": Mutant(
        [("rows", "return self.separate or not self.part_moves", "return True")],
        "test_second_pass_leaves_no_trace.py",
        "test_batch_norm_moves_once_a_step and large-part",
    ),
    "statistics-from-the-smaller-part": Mutant(
        [("rows", "self.rest is None or self.share > 0.5", "self.rest is None or self.share < 0.5")],
        "test_second_pass_leaves_no_trace.py",
        "test_running_statistics_come_from_the_larger_part",
    ),
    "masks-of-dropout-drawn-anew": Mutant(
        [("passes", 'optimizer.dropout == "keep" and', "False and")],
        "test_second_pass_leaves_no_trace.py",
        "test_dropout_masks",
    ),
    "parts-mixed-the-wrong-way-round": twin_of(
        "split_sgd",
        ("gradients", "_foreach_lerp_(right, left, share)", "_foreach_lerp_(right, left, 1 - share)"),
    ),
    "parts-mixed-by-each-others-weight": Mutant(
        [("gradients", "torch._foreach_mul_(right, 1 - share)\n", "torch._foreach_mul_(right, share)\n")],
        "test_step_contract.py",
        "test_a_closure_may_weigh_its_rows",
    ),
    "radius-whatever-the-loss": Mutant(
        [
            (
                "radii",
                "torch.clamp(2 * self.largest_rise * loss.abs().to(norm).sqrt() / (norm + EPSILON), max=rho)",
                "norm * 0 + rho",
            )
        ],
        "test_perturbation.py",
        "test_vsams_radius",
    ),
    "given-perturbation-keeps-its-roles": Mutant(
        [("perturbation", "    if roles is None:\n", "    if roles is None or isinstance(name, Perturbation):\n")],
        "test_options_without_effect.py",
        "test_roles_rule_a_perturbation",
    ),
    "given-perturbation-written-into": Mutant(
        [("perturbation", "    on_these = copy.copy(perturbation)\n", "    on_these = perturbation\n")],
        "test_options_without_effect.py",
        "test_roles_rule_a_perturbation",
    ),
    "bound-off-where-a-radius-is-given": Mutant(
        [("family/vsam", "if largest_rise is not None:", "if largest_rise is not None and rho == RHO:")],
        "test_perturbation.py",
        "test_vsams_radius",
    ),
    "published-without-reuse": twin_of("vsam_paper", ("family/vsam_paper", "PSF(gamma=reuse", "PSF(gamma=0 * reuse")),
    "published-without-warm-up": twin_of(
        "vsam_paper", ("family/vsam_paper", "warmup_steps=warmup_steps,", "warmup_steps=0,")
    ),
    "state-of-another-schedule-half-loaded": Mutant(
        [("wrapper", "        self.check_extra_state(extra)\n", "")],
        "test_optimizer_state.py",
        "test_the_state_of_vsam_and_that_of_vsam_paper",
    ),
    "noise-of-rounding-taken-whole": Mutant(
        [
            (
                "methods",
                "psf = beyond_rounding(part.gradients, displaced.gradients)",
                "psf = difference(displaced.gradients, part.gradients)",
            )
        ],
        "test_noise_of_rounding.py",
        "test_h_counts_in_proportion",
    ),
    "noise-of-rounding-taken-negative": Mutant(
        [("psf", "share.clamp(0, 1)", "share.clamp(max=1)")],
        "test_noise_of_rounding.py",
        "test_h_counts_in_proportion",
    ),
    "h-weighted-by-its-share": twin_of(
        "vsam", ("methods", "total(mixed, psf) if psf", "total(mixed, psf, alpha=rows.share) if psf")
    ),
    "h-not-reset": Mutant(
        [("psf", "        self.age = 0\n", "        self.age = self.age or 0\n")],
        "test_reference_twins.py",
        f"{TWIN} and periodic_sam",
    ),
    "reuse-exponent-off-by-one": Mutant(
        [("psf", "self.gamma ** (self.age + 1)", "self.gamma**self.age")],
        "test_schedules.py",
        "test_reuse_lasts_six_steps",
    ),
    "reuse-one-step-too-long": Mutant(
        [("psf", "self.age >= self.lifetime", "self.age > self.lifetime")],
        "test_schedules.py",
        "test_reuse_lasts_six_steps",
    ),
    "asam-without-eta": twin_of(
        "asam", ("scales", "_foreach_add_(magnitudes, self.eta)", "_foreach_add_(magnitudes, 0.0)")
    ),
    "asam-with-t-once": twin_of("asam", ("perturbation", "torch._foreach_mul_(scaled, units)", "pass")),
    "asam-scales-biases": twin_of(
        "asam",
        (
            "scales",
            "for point in points if point.parameter.dim() > 1]",
            "for point in points if point.parameter.dim() > 0]",
        ),
        ("scales", "next(measured) if point.parameter.dim() > 1", "next(measured) if point.parameter.dim() > 0"),
    ),
    "fsam-mean-never-follows": twin_of("fsam", ("directions", "alpha=1 - self.decay", "alpha=0")),
    "fsam-mean-of-this-step": twin_of(
        "fsam",
        (
            "directions",
            "means = [state[point.parameter][KEY] for point in known]",
            "means = [self.decay * state[p.parameter][KEY] + (1 - self.decay) * found[p] for p in known]",
        ),
    ),
    "fsam-mean-of-what-the-step-is-made-with": twin_of(
        "fsam", ("directions", 'remembers = "slopes"', 'remembers = "steps"')
    ),
    "fsam-mean-shares-memory-with-a-declined-step": Mutant(
        [("passes", "                self.slopes = {p: g.clone() for p, g in self.slopes.items()}\n", "")],
        "test_combinations.py",
        "friendly-gradient-norm",
    ),
    "state-of-a-parameter-that-the-base-has-not-met": Mutant(
        [("sharpness_aware", "(outcome.psf or {}).items() if p in outcome.gradients", "(outcome.psf or {}).items()")],
        "test_every_member.py",
        "test_frozen_tied_late_and_flickering and looksam and adamw",
    ),
    "looksam-without-projection": twin_of(
        "looksam", ("psf", "across = difference(psf, _times(plain, slope))", "across = difference(psf, {})")
    ),
    "looksam-not-in-proportion-to-g": twin_of(
        "looksam",
        ("psf", "scale = self.alpha * global_norm(list(gradients.values()))", "scale = torch.tensor(self.alpha)"),
    ),
    "ae-threshold-sign": twin_of(
        "ae_sam", ("gradient_schedule", "square >= mean + threshold", "square >= mean - threshold")
    ),
    "ae-variance-around-the-old-mean": twin_of(
        "ae_sam",
        (
            "gradient_schedule",
            "(1 - self.decay) * (square - mean) ** 2",
            "(1 - self.decay) * (square - self.mean) ** 2",
        ),
    ),
    "s2-sam-along-this-steps-gradient": twin_of(
        "s2_sam",
        ("methods", "ahead = passes.look_ahead()", "ahead = passes.ascend(None, None)[1]"),
        (
            "directions",
            "return {point: state[point.parameter][KEY] for point in points if KEY in state.get(point.parameter, ())}",
            "return super().along(points, slopes, state)",
        ),
    ),
    "s2-sam-along-older-gradients": Mutant(
        [("directions", "            own.pop(KEY, None)\n        super()", "            pass\n        super()")],
        "test_perturbation.py",
        "test_a_parameter_without_gradient_in_the_step_before",
    ),
    "msam-with-the-momentum": twin_of("msam", ("directions", "[-1.0] * len(points)", "[1.0] * len(points)")),
    "esam-without-beta": twin_of("esam", ("directions", "1 / self.beta if", "1.0 if")),
    "esam-rows-that-fall": twin_of("esam", ("methods", "descending=True", "descending=False")),
    "esam-rows-of-large-loss": twin_of("esam", ("methods", "losses_there() - first.losses", "losses_there()")),
    "sam-on-moves-all": twin_of(
        "sam_on", ("points", "for parameter in radii if parameter in own]", "for parameter in radii]")
    ),
    "le-sam-without-largest-radius": twin_of(
        "le_sam",
        (
            "radii",
            "self._rise(step) / (norm + EPSILON), max=rho)",
            "self._rise(step) / (norm + EPSILON), max=math.inf)",
        ),
    ),
    "le-sam-that-never-ends": twin_of("le_sam", ("radii", "self._rise(step) /", "self.sigma /")),
    "saq-moves-the-latent-weight": twin_of(
        "saq", ("points", "                if layer is None:", "                if True:")
    ),
    "random-sam-with-the-other-probability": twin_of(
        "random_sam", ("step_schedules", "return draw < self.probability", "return draw >= self.probability")
    ),
    "random-count-forgets-what-it-paid": twin_of(
        "random_count_sam", ("step_schedules", "(self.count or 0) - self.payments", "(self.count or 0)")
    ),
    "periodic-one-step-late": twin_of(
        "periodic_sam", ("step_schedules", "self.step % self.interval == 0", "self.step % self.interval == 1")
    ),
    "ramp-twice-as-steep": twin_of("ramp_sam", ("step_schedules", "slope * done * done / 2", "slope * done * done")),
    "late-sam-one-step-late": twin_of("late_sam", ("step_schedules", "self.begin - 1e-12 <=", "self.begin + 1e-12 <")),
    "budget-spent-twice": Mutant(
        [
            (
                "budget_schedule",
                "self._accrual(learning_rate) - paid, 1.0",
                "self._accrual(learning_rate) - paid / 2, 1.0",
            )
        ],
        "test_schedules.py",
        "test_a_run_of_any_length",
    ),
    "variance-of-unsorted-norms": Mutant(
        [("variance_schedule", "ordered = sorted(", "ordered = list(")],
        "test_reference_twins.py",
        "test_vsam_paper_equals_its_twin",
    ),
    "variance-draws-the-wrong-way-round": Mutant(
        [("variance_schedule", "self._draw() >= 1 - self.rate", "self._draw() >= self.rate")],
        "test_reference_twins.py",
        "test_vsam_paper_equals_its_twin",
    ),
    "bad-gradient-accepted": Mutant(
        [("sharpness_aware", "if self.stopped or not accepted:", "if self.stopped:")],
        "test_every_member.py",
        "test_a_bad_gradient and skip and sam",
    ),
    "payments-left-out-of-the-state": Mutant(
        [("schedule", '("step", "payments")', '("step",)')],
        "test_optimizer_state.py",
        "test_a_run_resumed and random_count_sam",
    ),
    "psf-of-the-weights-type-after-loading": Mutant(
        [("psf", "per_parameter[KEY].to(self.dtype)", "per_parameter[KEY].clone()")],
        "test_optimizer_state.py",
        "test_a_psf_of_half_the_memory",
    ),
    "schedule-left-out-of-copies": Mutant(
        [("sharpness_aware", '        "schedule",\n', "")],
        "test_optimizer_state.py",
        "test_a_deep_copy",
    ),
    "a-tensor-too-many": Mutant(
        [
            (
                "sharpness_aware",
                "        self.steps += 1\n",
                "        self.steps += 1\n        for p in self.state:\n            self.state[p]['x'] = p.clone()\n",
            )
        ],
        "test_every_member.py",
        "test_cost_and_memory and asam",
    ),
    "a-pass-not-counted": Mutant(
        [("passes", "        self.forwards += 1\n        self.evaluations +=", "        self.evaluations +=")],
        "test_every_member.py",
        "test_cost_and_memory and looksam",
    ),
}
QUICK = ("sign-of-e", "missing-restore", "statistics-on-in-the-second-pass")
# with paths from the package and from the folder of all tests
PLACED = {
    name: Mutant([(f"optim/{module}", old, new) for module, old, new in edits], f"optim/{file}", tests)
    for name, (edits, file, tests) in MUTANTS.items()
}


@each(PLACED, QUICK)
def test_a_mutant_is_killed(assert_killed, mutant):
    assert_killed(*mutant)


@pytest.mark.nightly
@each_file(PLACED)
def test_the_same_tests_pass_where_nothing_was_changed(run_on_a_copy, file, expression):
    status, output = run_on_a_copy([], file, expression)
    assert status == 0, output
