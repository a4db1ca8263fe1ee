"""A network under `torch.compile` is compiled few times, whatever the passes, and computes the same steps."""

import pytest
import torch
from torch.nn import functional

from qat_vsam.models import build_model
from qat_vsam.optim import ESAM, MSAM, SAM, SAQ, VSAM
from qat_vsam.quant import QuantSpec, calibrate, param_groups, prepare

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

MOST_GRAPHS = 3
EVEN = (32,) * 5
LAST_IS_SMALL = (32, 32, 32, 20, 32, 32, 32, 20)
BEHIND = {"perturbation": "post_quantizer"}
MEMBERS = {
    "sam": (SAM, {}, LAST_IS_SMALL),
    "vsam": (VSAM, {}, LAST_IS_SMALL),
    "vsam-quarter": (VSAM, {"share": 0.25, "gradient_budget": 1.25}, LAST_IS_SMALL),
    "vsam-three-quarters": (VSAM, {"share": 0.75, "gradient_budget": 1.75}, LAST_IS_SMALL),
    "vsam-ascend-part": (VSAM, {"method": "ascend_part"}, LAST_IS_SMALL),
    "msam": (MSAM, {}, LAST_IS_SMALL),
    "esam": (ESAM, {}, EVEN),
}
BEHIND_QUANTIZERS = {
    "saq": (SAQ, {}, LAST_IS_SMALL),
    "sam-post-quantizer": (SAM, BEHIND, LAST_IS_SMALL),
    "vsam-post-quantizer": (VSAM, BEHIND, EVEN),
}
NIGHTLY = pytest.mark.nightly
CASES = [
    ("sam", None),
    ("vsam", None),
    ("vsam-quarter", None),
    ("vsam", "w4a4"),
    *(pytest.param(name, bits, marks=NIGHTLY) for bits in (None, "w4a4") for name in MEMBERS),
]


class Backend:
    """Runs a graph as it was traced, and counts the graphs."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(bits):
    """A network with batch norms; quantized if `bits` is given."""
    model = build_model("digits_cnn", seed=0, width=4)
    if bits:
        prepare(model, QuantSpec.preset(bits))
        calibrate(model, [torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))])
    # float64, so that rounding errors do not put weights on other points of the grid
    return model.double()


def train(bits, member, options, sizes, backend=None):
    """The network after steps on batches of these sizes, its eager module returned, and the number of passes."""
    model = network(bits)
    optimizer = member(param_groups(model), torch.optim.SGD, model=model, lr=0.05, momentum=0.9, **options)
    forward = model if backend is None else torch.compile(model, backend=backend)
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        x = torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 10, (size,), generator=generator)

        def closure(rows=slice(None), backward=True, x=x, y=y):
            optimizer.zero_grad()
            losses = functional.cross_entropy(forward(x[rows]), y[rows], reduction="none")
            if backward:
                losses.mean().backward()
            return (losses.mean(), losses.detach()) if optimizer.method.needs_row_losses else losses.mean()

        optimizer.step(closure, batch_size=size)
    return model, optimizer.forwards


def assert_same_network(one, other):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_at_most_three_graphs_and_the_eager_networks_steps(name, bits):
    member, options, sizes = MEMBERS[name]
    backend = Backend()
    compiled, passes = train(bits, member, options, sizes, backend)
    eager, _ = train(bits, member, options, sizes)
    assert 1 <= backend.graphs <= MOST_GRAPHS < passes
    assert_same_network(eager, compiled)


@pytest.mark.parametrize("name", ["saq", pytest.param("sam-post-quantizer", marks=NIGHTLY), "vsam-post-quantizer"])
def test_the_offset_behind_the_quantizer_is_applied_in_a_compiled_network(name):
    member, options, sizes = BEHIND_QUANTIZERS[name]
    backend = Backend()
    compiled, _ = train("w4a4", member, options, sizes, backend)
    eager, _ = train("w4a4", member, options, sizes)
    unmoved, _ = train("w4a4", member, {**options, "rho": 0.0}, sizes)
    assert backend.graphs <= MOST_GRAPHS
    assert_same_network(eager, compiled)
    assert not torch.allclose(unmoved.state_dict()["linear.weight"], compiled.state_dict()["linear.weight"], atol=1e-4)


def test_both_passes_of_sam_share_one_graph():
    backend = Backend()
    _, passes = train(None, SAM, {}, EVEN, backend)
    assert (backend.graphs, passes) == (1, 10)
