"""The tests can fail: each of these mistakes, made in a copy of the package, is seen by the tests named with it."""

import pytest
from mutants import Mutant, each, each_file


def quant(module, old, new, file, tests):
    return Mutant([(f"quant/{module}", old, new)], f"quant/test_{file}.py", tests)


MUTANTS = {
    "mask-taken-after-rounding": quant(
        "kernels",
        "torch.eq(clipped, v, out=torch.empty_like(v))",
        "torch.eq(v.round().clamp(q_min, q_max), v.round(), out=torch.empty_like(v))",
        "functional",
        "test_mask_is_taken_before_rounding",
    ),
    "no-gradient-at-the-ends": quant(
        "kernels",
        "torch.eq(clipped, v, out=torch.empty_like(v))",
        "((v > q_min) & (v < q_max)).to(v.dtype)",
        "functional",
        "test_gradient_passes_at_both_ends_of_the_range",
    ),
    "gradient-factor-left-out": quant(
        "functional",
        "gs = gs * gradient_factor",
        "gs = gs * 1.0",
        "quantizers",
        "test_the_factor_reaches_the_gradient_of_the_step",
    ),
    "gradient-factor-of-the-whole-batch": quant(
        "quantizers/lsq",
        'x.shape[0] if self.role == "activation" and x.dim() > 0 else self.step_size.numel()',
        "self.step_size.numel()",
        "quantizers",
        "test_gradient_factor_counts_the_elements",
    ),
    "codes-of-ties-rounded-up": quant(
        "functional", "codes = v.round_()", "codes = (v + 0.5).floor_()", "functional", "test_ties_go_to_even_codes"
    ),
    "values-of-ties-rounded-up": quant(
        "kernels",
        "if shift else v.round_()",
        "if shift else (v + 0.5).floor_()",
        "functional",
        "test_ties_go_to_even_codes",
    ),
    "largest-code-off-by-one": quant("tensor_spec", "-half), half - 1", "-half), half", "spec", "test_integer_range"),
    "smallest-level-off-by-one": quant(
        "kernels",
        "(x / s).clamp_(q_min, q_max)",
        "(x / s).clamp_(q_min + 1, q_max)",
        "grid_properties",
        "test_values_are_codes_times_a_positive_scale",
    ),
    "scale-may-be-negative": quant(
        "functional",
        "return _with_gradient_of(magnitude, magnitude.clamp_min(SMALLEST_STEP))",
        "return step",
        "functional",
        "test_no_step_size_gives_a_negative_or_zero_scale",
    ),
    "gradient-of-a-negative-step-size": quant(
        "functional",
        "gs = torch.where(step_size < 0, -gs, gs).to(step_size.dtype)",
        "gs = gs.to(step_size.dtype)",
        "functional",
        "test_no_step_size_gives_a_negative_or_zero_scale",
    ),
    "measured-step-below-the-floor": quant(
        "quantizers/measured",
        "positive_scale(self.current_scale)",
        "self.current_scale.clone()",
        "grid_properties",
        "test_values_are_codes_times_a_positive_scale",
    ),
    "end-of-a-measured-range-clipped": quant(
        "statistics",
        "(value / step).abs() > abs(level)",
        "(value / step).abs() > math.inf",
        "grid_properties",
        "test_the_ends_of_the_range_that_a_step_spans",
    ),
    "readiness-not-saved": quant(
        "quantizers/base",
        "int(self.signed), int(self.initialised), ",
        "int(self.signed), 0, ",
        "quantizers",
        "test_a_plain_state_dict_restores",
    ),
    "sign-lost-on-resume": quant(
        "quantizers/base",
        "self.signed, self.initialised = bool(signed), bool(initialised)",
        "self.initialised = bool(initialised)",
        "quantizers",
        "test_a_plain_state_dict_restores",
    ),
    "state-of-another-grid-accepted": quant(
        "quantizers/base",
        "if (bits, kind) != (self.bits, self._kind):",
        "if bits != self.bits:",
        "grids",
        "test_the_state_of_another_grid_is_refused",
    ),
    "zero-taken-for-a-negative-value": quant(
        "quantizers/base",
        "(statistics.minimum < 0).any()",
        "(statistics.minimum <= 0).any()",
        "calibrate",
        "test_signs_and_steps_come_from_all_batches",
    ),
    "scales-along-the-last-axis": quant(
        "kernels",
        "scale.reshape(-1, *[1] * (x.dim() - 1))",
        "scale.reshape(*[1] * (x.dim() - 1), -1)",
        "functional",
        "test_every_memory_layout",
    ),
    "scales-for-the-inputs-of-a-transposed-convolution": Mutant(
        [
            ("quant/layers", "return swap_channels(weight, self.groups)", "return weight"),
            ("quant/layers", "return swap_channels(rows, self.groups)", "return rows"),
        ],
        "quant/test_layer_kinds.py",
        "test_each_output_channel_has_its_scale and transposed",
    ),
    "groups-across-rows": quant(
        "quantizers/base",
        "x.reshape(-1, self.spec.group_size) if",
        "x.reshape(self.spec.group_size, -1).T if",
        "per_group",
        "test_every_group_is_quantized_as_if_it_were_alone",
    ),
    "ranges-that-move-in-evaluation": quant(
        "quantizers/minmax",
        '(self.role == "weight" or self.training)',
        "True",
        "quantizers",
        "test_minmax_follows_activations_only_in_training",
    ),
    "ranges-that-move-in-the-second-pass": quant(
        "quantizers/minmax",
        "if not self.updates_state or not (",
        "if not (",
        "quantizers",
        "test_minmax_follows_activations_only_in_training",
    ),
    "offset-not-rounded-to-the-grid": quant(
        "offset", ".clamp(0, q_max).round()", ".clamp(0, q_max)", "lsq_plus", "test_properties_of_the_grid"
    ),
    "offset-moved-by-what-is-not-clipped": quant(
        "offset", "(g * outside).sum()", "g.sum()", "lsq_plus", "test_it_is_the_papers_formula"
    ),
    "ewgs-the-wrong-way": quant(
        "kernels", "return 1 + strength * gradient", "return 1 - strength * gradient", "functional", "test_a_surrogate"
    ),
    "stable-upside-down": quant(
        "kernels", "(1 - wave) / (1 + wave)\n\n", "(1 + wave) / (1 - wave)\n\n", "functional", "test_a_surrogate"
    ),
    "pact-clip-moved-by-the-rounding": quant(
        "quantizers/pact", "rounding_moves_step=False", "rounding_moves_step=True", "methods", "test_pact_clips"
    ),
    "dorefa-not-normalised": quant(
        "quantizers/dorefa",
        "squeezed / torch.where(largest > 0, largest, 1.0) *",
        "squeezed *",
        "methods",
        "test_dorefa_is_its_formula",
    ),
    "dead-channels-come-to-life": quant(
        "quantizers/measured",
        "1.0 if self.code_stride == 1 else 0.0",
        "1.0",
        "methods",
        "test_a_channel_of_zeros",
    ),
    "dorefa-maximum-without-gradient": quant(
        "quantizers/dorefa",
        "largest = squeezed.abs().amax",
        "largest = squeezed.detach().abs().amax",
        "methods",
        "test_dorefa_is_its_formula",
    ),
    "least-absolute-error": quant(
        "statistics",
        "sub_(sample).mul_(unit).square_().mean(1, keepdim=True)",
        "sub_(sample).mul_(unit).abs_().mean(1, keepdim=True)",
        "methods",
        "test_a_step_of_least_squared_error",
    ),
    "lsq-start-without-its-two": quant(
        "statistics",
        "2 * statistics.mean_magnitude / math.sqrt(q_max)",
        "statistics.mean_magnitude / math.sqrt(q_max)",
        "quantizers",
        "test_squared_error_start",
    ),
    "percentile-of-one-end": quant(
        "statistics", "ordered[:, count - 1 - place]", "ordered[:, place]", "methods", "test_a_percentile_clips"
    ),
    "powers-of-two-rounded-up": quant(
        "functional",
        "torch.log2(scale.detach()).round()",
        "torch.log2(scale.detach()).ceil()",
        "functional",
        "test_a_power_of_two_is_the_nearest",
    ),
    "balanced-grid-with-a-zero": quant(
        "kernels",
        "v, shift = (x / s).clamp_(q_min, q_max), q_min % 1",
        "v, shift = (x / s).clamp_(q_min, q_max), 0",
        "grids",
        "test_a_balanced_grid_has_odd_codes",
    ),
    "sign-of-zero": quant("functional", "(x >= 0).to(", "(x > 0).to(", "functional", "test_sign_grid"),
    "weight-offset-left-out": quant(
        "layers",
        "return weight if self.weight_offset is None else weight + self.weight_offset",
        "return weight",
        "layers",
        "test_weight_offset_is_added",
    ),
    "depthwise-layers-passed-over": quant(
        "prepare",
        "        if not is_layer and not any(",
        '        if getattr(module, "groups", 1) > 1 or not is_layer and not any(',
        "prepare",
        "test_every_layer_is_swapped and mobilenet",
    ),
    "transposed-layers-passed-over": quant(
        "prepare",
        "    nn.ConvTranspose2d: QuantConvTranspose2d,\n",
        "",
        "layer_kinds",
        "test_off_it_is_the_float_layer and transposed",
    ),
    "embeddings-passed-over": quant(
        "prepare", "    nn.Embedding: QuantEmbedding,\n", "", "layer_kinds", "test_an_embedding_has_a_scale"
    ),
    "last-layer-like-the-others": quant(
        "prepare", "{*names[:1], *names[-1:]}", "{*names[:1]}", "prepare", "test_first_and_last_layer"
    ),
    "last-rule-wins": quant(
        "prepare", "rules.setdefault(name, rule)", "rules[name] = rule", "overrides", "test_the_first_rule"
    ),
    "target-not-asked": quant(
        "prepare", "        spec.target, {n:", '        "simulated", {n:', "targets", "test_a_layer_that_the_target"
    ),
    "readers-of-one-tensor-apart": quant(
        "sharing",
        "layer.input_quantizer = leader.input_quantizer",
        "pass",
        "prepare",
        "test_layers_that_read_one_tensor",
    ),
    "range-moved-by-every-reader": quant(
        "sharing",
        "layer.reads_again = layer is not leader",
        "layer.reads_again = False",
        "prepare",
        "test_readers_of_one_tensor_see_one_range",
    ),
    "readers-of-other-width-together": quant(
        "sharing",
        "first.setdefault(layer.input_quantizer.spec, layer)",
        "first.setdefault(None, layer)",
        "prepare",
        "test_layers_of_different_width",
    ),
    "statistics-that-move-in-calibration": quant(
        "calibrate",
        "with evaluating(model), quantizers_off(model):",
        "with quantizers_off(model):",
        "calibrate",
        "test_modes_statistics_and_switches",
    ),
    "saved-codes-from-another-origin": quant(
        "functional",
        "remember(x_hat, places, origin(q_min, q_max), scale)",
        "remember(x_hat, places, 0, scale)",
        "saved_codes",
        "test_the_gradients_are_those_of_kept_values and w8a8 and lsq and linear",
    ),
    "values-kept-for-the-backward-pass": quant(
        "kernels",
        "return not torch.compiler.is_compiling() and q.numel() >= WORTH_KEEPING",
        "return False",
        "saved_codes",
        "test_resnet_20_keeps",
    ),
    "input-kept-twice": quant(
        "functional",
        "ctx.save_for_backward(x, step_size)",
        "ctx.save_for_backward(x.clone(), step_size)",
        "functional",
        "test_keeps_no_tensor_beyond_its_input",
    ),
    "re-estimated-with-momentum": quant(
        "stability",
        "norm.running_mean.copy_(mean)",
        "norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)",
        "groups_and_stability",
        "test_batch_norm_gets_the_mean",
    ),
    "re-estimated-variance-biased": quant(
        "moments",
        "return self._mean, self._squares / max(self.count - 1, 1)",
        "return self._mean, self._squares / self.count",
        "groups_and_stability",
        "test_batch_norm_gets_the_mean",
    ),
    "frozen-norm-that-moves": Mutant(
        [("quant/stability", "                module.eval()", "                pass")],
        "train/test_frozen_batch_norm.py",
        "test_statistics_move_until_the_step",
    ),
    "frozen-one-step-late": Mutant(
        [("quant/stability", "step >= after", "step > after")],
        "train/test_frozen_batch_norm.py",
        "test_statistics_move_until_the_step",
    ),
    "bias-corrected-the-wrong-way": quant(
        "correction",
        "add_((mean_in_float - mean)",
        "add_((mean - mean_in_float)",
        "correction",
        "test_the_mean_of_each_output_channel",
    ),
    "spread-corrected-the-wrong-way": quant(
        "correction",
        "+ epsilon) / gain.square()",
        "+ epsilon) * gain.square()",
        "correction",
        "test_every_batch_norm_hands_on",
    ),
    "step-sizes-under-weight-decay": quant(
        "groups",
        'if role == "weight" else 0.0',
        'if role in ("weight", "step_size") else 0.0',
        "groups_and_stability",
        "test_every_parameter_is_in_one_group",
    ),
}
QUICK = ("mask-taken-after-rounding", "sign-lost-on-resume")


@each(MUTANTS, QUICK)
def test_a_mutant_is_killed(assert_killed, mutant):
    assert_killed(*mutant)


@pytest.mark.nightly
@each_file(MUTANTS)
def test_the_same_tests_pass_where_nothing_was_changed(run_on_a_copy, file, expression):
    status, output = run_on_a_copy([], file, expression)
    assert status == 0, output
