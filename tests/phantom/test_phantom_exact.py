"""The arithmetic that the simulator rests on."""

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fundusgen.phantom
from fundusgen.phantom.exact import bell, bells, cos_sin, cube_root, exp, falloff, hat, whole
from fundusgen.phantom.optics import blur

# `reading` turns parameters into targets for a network and decides no pixel.
MODULES = sorted(
    path
    for path in Path(str(fundusgen.phantom.__file__)).parent.glob("*.py")
    if path.stem != "reading"
)
# What IEEE 754 does not fix to the last bit, or what may add in another order.
FORBIDDEN = {
    *("sin", "cos", "tan", "arctan2", "hypot", "exp2", "expm1", "log", "log1p", "log2", "power"),
    *("dot", "matmul", "einsum", "inner", "tensordot", "convolve", "interp", "linspace"),
    *("sum", "mean", "std", "var", "prod", "average", "normal", "standard_normal", "gamma", "beta"),
    *("poisson", "choice", "shuffle", "permutation"),
}


@given(st.floats(-100, 100))
def test_cosine_and_sine_agree_with_the_library(turns: float) -> None:
    cosine, sine = cos_sin(np.array([turns]))
    assert cosine[0] == pytest.approx(np.cos(2 * np.pi * turns), abs=2e-7)
    assert sine[0] == pytest.approx(np.sin(2 * np.pi * turns), abs=2e-7)


@given(st.floats(-40, 40))
def test_exp_agrees_with_the_library(x: float) -> None:
    assert exp(np.array([x]))[0] == pytest.approx(np.exp(x), rel=1e-6)


def test_exp_keeps_single_precision() -> None:
    assert exp(np.zeros(3, dtype=np.float32)).dtype == np.float32


@given(st.floats(1e-4, 1.0))
def test_cube_root_agrees_with_the_library(x: float) -> None:
    assert cube_root(np.array([x]))[0] == pytest.approx(np.cbrt(x), rel=1e-3)


def test_bumps_are_one_in_the_middle_and_fall() -> None:
    squares = np.array([0.0, 0.25, 1.0, 4.0])
    assert hat(squares).tolist() == [1.0, 0.5625, 0.0, 0.0]
    assert falloff(squares)[[0, 2]].tolist() == [1.0, 0.25]


def test_bell_draws_have_their_mean_and_spread() -> None:
    draws = bells(np.random.Generator(np.random.PCG64(1)), 3.0, 0.5, 20_000)
    assert draws.mean() == pytest.approx(3.0, abs=0.02)
    assert draws.std() == pytest.approx(0.5, abs=0.01)
    assert np.abs(draws - 3.0).max() < 3.5 * 0.5


def test_a_single_bell_draw_has_the_bits_of_an_array_of_one() -> None:
    one, other = (np.random.Generator(np.random.PCG64(2)) for _ in range(2))
    assert all(bell(one, 55.3, 14.1) == bells(other, 55.3, 14.1, 1)[0] for _ in range(200))


def test_whole_numbers_include_both_ends() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    assert {whole(rng, 2, 4) for _ in range(100)} == {2, 3, 4}


@pytest.mark.parametrize("sigma_px", [0.7, 1.0, 4.5])
def test_blur_keeps_the_light_and_spreads_it(sigma_px: float) -> None:
    spot = np.zeros((1, 41, 41))
    spot[0, 20, 20] = 1.0
    blurred = blur(spot, sigma_px)
    assert blurred.sum() == pytest.approx(1.0)
    variance = (blurred[0].sum(axis=0) * (np.arange(41) - 20.0) ** 2).sum()
    assert variance == pytest.approx(sigma_px**2, rel=0.15)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_nothing_that_may_differ_between_machines_is_called(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in FORBIDDEN, f"{module.name}:{node.lineno} uses {node.attr}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            pytest.fail(f"{module.name}:{node.lineno} multiplies matrices")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            whole_numbers = isinstance(node.left, ast.Constant) and isinstance(
                node.right, ast.Constant
            )
            assert whole_numbers, f"{module.name}:{node.lineno} raises to a power"
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"math", "scipy"} & {name.split(".")[0] for name in names}
