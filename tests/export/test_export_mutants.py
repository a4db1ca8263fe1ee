"""The tests can fail: each of these mistakes, made in a copy of the package, is seen by the tests named with it."""

import pytest
from mutants import Mutant, each, each_file


def export(module, old, new, file, tests):
    return Mutant([(f"export/{module}", old, new)], f"export/test_{file}.py", tests)


MUTANTS = {
    "highest-bit-first": Mutant(
        [
            ("export/bits", '.reshape(-1), bitorder="little")', '.reshape(-1), bitorder="big")'),
            ("export/bits", '.numpy(), bitorder="little")', '.numpy(), bitorder="big")'),
        ],
        "export/test_bits.py",
        "test_the_first_code_lies_in_the_lowest_bits",
    ),
    "sign-not-restored-from-the-bits": export(
        "bits", " + np.int16(lowest))", ")", "bits", "test_every_length_and_width"
    ),
    "negative-gamma-folded-as-positive": export(
        "fold", "np.sign(factor)", "np.abs(np.sign(factor))", "onnx", "test_negative_gammas"
    ),
    "bias-lost-in-folding": export(
        "fold", "((old_bias.astype(np.float64) - mean) * factor", "(-mean * factor", "onnx", "test_a_norm_behind"
    ),
    "epsilon-lost-in-folding": export(
        "fold", "np.sqrt(variance + epsilon)", "np.sqrt(variance)", "onnx", "test_a_norm_with_a_large_epsilon"
    ),
    "bias-lost-in-integers": export(
        "integer_layers",
        "return y if self.bias is None else y + self.per_channel(self.bias)",
        "return y",
        "integer",
        "test_it_is_the_fake_quantized_net_bit_for_bit",
    ),
    "sums-in-too-few-digits": export(
        "integer_layers",
        "return torch.float32 if reach < _FLOAT32_EXACT else torch.float64",
        "return torch.float32",
        "integer",
        "test_accumulators_are_exact_integers",
    ),
    "zero-point-left-in-the-sum": export(
        "integer_layers", "codes -= self.activation_grid.zero_point", "pass", "grid", "test_sums_of_codes_are_exact"
    ),
    "reach-without-the-zero-point": export(
        "grid",
        "max(abs(self.lowest - self.zero_point), abs(self.highest - self.zero_point))",
        "max(abs(self.lowest), abs(self.highest))",
        "grid",
        "test_its_reach",
    ),
    "groups-of-the-wrong-rows": Mutant(
        [("export/integer", "scale.reshape(len(row_codes), -1) if", "scale.reshape(-1, len(row_codes)).T if")],
        "quant/test_per_group.py",
        "test_from_training_to_the_files and w4a8",
    ),
    "zero-point-lost-in-onnx": Mutant(
        [("export/onnx_graph", "code_of_zero = _constant(zero_point, kind)", "code_of_zero = _constant(0, kind)")],
        "quant/test_lsq_plus.py",
        "test_from_training_to_the_files and w4a4",
    ),
    "clip-left-out-in-onnx": export(
        "onnx_graph",
        "if (lowest, highest) not in ((-128, 127), (0, 255)):",
        "if False:",
        "onnx",
        "test_it_computes_what_the_model_computes and w1a2",
    ),
    "clip-in-front-of-the-codes": export(
        "onnx_graph",
        "            codes = op.Clip(codes, _constant(lowest, kind), _constant(highest, kind))",
        "            ends = [op.Mul(scale, _constant(float(end), ir.DataType.FLOAT)) for end in (lowest, highest)]\n"
        "            codes = op.QuantizeLinear(op.Clip(x, *ends), scale, code_of_zero)",
        "onnx",
        "test_weights_are_8_bit_integers",
    ),
    "biases-inside-of-quantized-layers": export(
        "onnx_graph",
        "        separate_biases(graph.graph)",
        "        pass",
        "onnx",
        "test_a_session_without_any_option",
    ),
    "checksum-not-looked-at": export(
        "packed", "or _digest(text, tensors) != digest:", "or False:", "packed", "test_any_flipped_bit"
    ),
    "proof-that-looks-past-codes": export(
        "proof", "and (codes is None or codes >= CODES_EQUAL)", "and True", "proof", "test_codes_are_weighed"
    ),
}
QUICK = ("highest-bit-first",)


@each(MUTANTS, QUICK)
def test_a_mutant_is_killed(assert_killed, mutant):
    assert_killed(*mutant)


@pytest.mark.nightly
@each_file(MUTANTS)
def test_the_same_tests_pass_where_nothing_was_changed(run_on_a_copy, file, expression):
    status, output = run_on_a_copy([], file, expression)
    assert status == 0, output
