"""Our grids, flow map and high-pass filter against reference numbers, where those are at hand."""

import numpy as np
import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler
from torch.testing import assert_close

from distill import flow
from distill_methods.gpd import GPD, high_pass
from tests import toys


@pytest.fixture
def reference(shared):
    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(shared / "parity" / f"{name}.npz") as data:
            return {key: torch.from_numpy(data[key]) for key in data.files}

    return load


@pytest.mark.parametrize("steps", [6, 10, 48, 50])
@pytest.mark.parametrize("shift", [3, 5, 8])
def test_grids_are_wans(reference, steps, shift):
    """G9, with the trap: diffusers' own Euler scheduler shifts twice."""
    grids, ours = reference("grids"), flow.grid(steps, shift)
    assert_close(ours[:-1], grids[f"wan_get_sampling_sigmas_shift{shift}_n{steps}"], atol=1e-7, rtol=0)
    twice = grids[f"diffusers_euler_shift{shift}_n{steps}_sigmas"].double()
    assert (ours - twice).abs().max() > 0.1 * ours[-2]


@pytest.mark.parametrize("steps", [5, 50])
def test_grids_are_hunyuans(reference, steps):
    assert_close(flow.grid(steps, 7).float(), reference("grids")[f"accvideo_hunyuan_shift7_n{steps}"])


@pytest.mark.parametrize("teacher_steps", [48, 36, 24])
@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
def test_the_exported_scheduler_walks_the_students_grid(teacher_steps, shift):
    scheduler = FlowMapEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(6)
    grid = GPD(teacher_steps=teacher_steps, shift=shift).grid()
    assert_close(scheduler.sigmas.double(), grid, atol=1e-7, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_average_velocities_of_a_gaussian(reference, k):
    """G11: exact, and of k Euler steps."""
    oracle = reference("oracle_gaussian")
    t, x = flow.grid(48, 5.0).flip(0), oracle["x"]
    assert_close(t, oracle["t"], atol=1e-15, rtol=0)
    data = toys.GaussianEuler(k, t.tolist(), mu=oracle["mu"].item(), s2=oracle["s2"].item())
    for row, i in enumerate(oracle[f"k{k}_index"].tolist()):
        ti, tj = data.t[i], data.t[i - k]
        assert_close((data.flow(x, ti, tj) - x) / (tj - ti), oracle[f"k{k}_exact_avg_velocity"][row])
        assert_close(data.average(x, i), oracle[f"k{k}_euler_avg_velocity"][row])


@pytest.mark.parametrize("k", [2, 4, 8])
def test_targets_of_a_gaussian_teacher(reference, k):
    """P4: the method's own target, from an exact frozen student, to float32."""
    oracle = reference("oracle_gaussian")
    method = GPD()
    method.stage = method.stages()[k - 2]
    data = {"mu": oracle["mu"].item(), "s2": oracle["s2"].item()}
    toys.place(method, teacher=toys.Gaussian(**data), prior=toys.GaussianEuler(k - 1, method.t, **data))
    z, b = oracle["x"].float().view(1, 1, 1, 1, 13), toys.batch(1)
    for row, i in enumerate(oracle[f"k{k}_index"].tolist()):
        v_target = (method.refine(z, i, b) - z) / (method.t[i - k] - method.t[i])
        assert_close(v_target.flatten().double(), oracle[f"k{k}_euler_avg_velocity"][row], atol=5e-5, rtol=0)


@pytest.mark.parametrize("alpha", ["0.500", "0.693", "1.000"])
def test_the_high_frequency_loss(reference, alpha):
    """Eq. 9-11, computed by numpy.fft."""
    oracle = reference("oracle_highpass")
    steepness = {"0.693": np.log(2)}.get(alpha, float(alpha))
    H = oracle[f"H_a{alpha}"]
    assert_close(high_pass((5, 6, 8), 0.25, 0.25, steepness).double(), H[..., :5], atol=1e-6, rtol=0)
    residual = (oracle["z"] - oracle["z2"]).float()
    energy = GPD(alpha=steepness).high_frequency_energy(residual)
    assert energy.item() == pytest.approx(oracle[f"loss_mean_a{alpha}"].item(), rel=1e-6)
    one = GPD(alpha=steepness).high_frequency_energy(oracle["z"].float())
    assert one.item() == pytest.approx(oracle[f"high_a{alpha}"].square().mean().item(), rel=1e-6)
