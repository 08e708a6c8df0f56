"""Recipes of published data sets, made again from their equations, and of every equation that has none.

Each says what was published, in which way this differs, and what is known to be wrong with the original. Equations and
parameters are as published; no code of the originals is used.

Sources: Takamoto et al., PDEBench, NeurIPS 2022 (arXiv:2210.07182), and its repository; Ohana et al., The Well, NeurIPS
2024 (arXiv:2412.00568), and danfortunato/spectral-gray-scott; Koehler et al., APEBench, NeurIPS 2024
(arXiv:2411.00180).
"""

from math import pi

from fastdiff import equations
from fastdiff.boundary import Dirichlet, Neumann, Robin
from fastdiff.data.initial import (
    Blobs,
    Clamped,
    Components,
    Constant,
    DiffusedNoise,
    FourierSeries,
    GrayScottBlobs,
    GrayScottFourier,
    OneOf,
    Seeds,
    SineWaves,
    Travelling,
    WhiteNoise,
)
from fastdiff.data.recipes import LogUniform, Recipe, Table, Uniform, register


def choice(label: str, name: str, *values: float, scale: float = 1.0) -> Table:
    """One of some numbers, with equal chances: as published, under its label, and as the equation takes it."""
    return Table((label, name), tuple((float(v), float(v) * scale) for v in values))


# -- PDEBench ---------------------------------------------------------------------------------------------------------

PDEBENCH_DIFF_REACT = register(Recipe(
    name="pdebench-diff-react",
    summary="PDEBench 2D_diff-react: FitzHugh–Nagumo from white noise on [-1, 1]², no flux",
    equation="FitzHughNagumo",
    parameters={"Du": 1e-3, "Dv": 5e-3, "k": 5e-3},
    initial=WhiteNoise(components=2),
    boundary=Neumann(0.0),
    fields=("u", "v"),
    shape=(128, 128),
    extent=((-1.0, 1.0), (-1.0, 1.0)),
    centering="cells",
    t_end=5.0,
    frames=101,
    method="rk4",
    dt=0.0125,
    rough=(2, 0.0025),
))
"""PDEBench's 2-D diffusion–reaction, u_t = Du Δu + u - u³ - k - v, v_t = Dv Δv + u - v.

As published: domain, cells, parameters, 101 frames, N(0, 1) in every cell, u drawn before v, walls without flux.
Deviations: the same five-point stencil, marched by RK4 with fixed steps of 0.0125, at first 0.0025, instead of scipy's
RK45 at rtol = 1e-3; seeds are SeedSequence(seed, sample).
Known errors of the original: its files say that the tolerance was 1e-6, its code uses solve_ivp's default of 1e-3;
the solver reshapes to (y, x) what its description calls (x, y), which a square of equal sides hides; noise that is
white on the grid makes data sets of different resolution incomparable.
"""

PDEBENCH_DIFF_SORP = register(Recipe(
    name="pdebench-diff-sorp",
    summary="PDEBench 1D_diff-sorp: diffusion with Freundlich sorption, from a constant",
    equation="Heat",
    parameters={"diffusivity": 5e-4},
    fixed={"capacity": "1 + 0.71/0.29*2880*3.5e-4*0.874*(u + 1e-6)**(0.874 - 1)", "bounds": (0.0, 1.0)},
    initial=Constant(low=0.0, high=0.2),
    boundary={"x": (Dirichlet(1.0), Robin(1.0, 5e-4, 0.0))},
    fields=("u",),
    shape=(1024,),
    centering="cells",
    t_end=500.0,
    frames=101,
    method="rkl2",
    dt=0.5,
))
"""PDEBench's 1-D diffusion–sorption, R(u) u_t = D u_xx, R = 1 + (1 - φ)/φ ρ k n (u + 1e-6)^(n - 1).

As published: D = 5e-4, φ = 0.29, ρ = 2880, k = 3.5e-4, n = 0.874, 1024 cells on [0, 1], 101 frames to t = 500, a
constant start, uniform in (0, 0.2), u = 1 on the left, u = -D u_x on the right.
Deviations: the left value 1 is held at the wall, x = 0, by a second-order ghost cell; the original holds it half a cell
outside. RKL2 with steps of 0.5 instead of RK45.
Known errors of the original: its own PINN enforces u = D u_x on the right, the opposite sign of its data; its shipped
configuration asks for 501 frames where the files have 101; the constant start is asked about in its issue 61.
"""

PDEBENCH_REACDIFF = register(Recipe(
    name="pdebench-reacdiff",
    summary="PDEBench ReacDiff: Fisher–KPP on a periodic line, from waves in [0, 1]",
    equation="FisherKPP",
    parameters={"D": choice("Nu", "D", 0.5, 1.0, 2.0, 5.0), "r": choice("Rho", "r", 1.0, 2.0, 5.0, 10.0)},
    labels=("Nu", "Rho"),
    initial=SineWaves(modes=4, normalized=True),
    fields=("u",),
    shape=(1024,),
    periodic=True,
    centering="cells",
    t_end=1.0,
    frames=101,
    method="etdrk4",
    dt=5e-3,
))
"""PDEBench's 1-D reaction–diffusion, u_t = ν u_xx + ρ u (1 - u); D is ν and r is ρ.

As published: ν in {0.5, 1, 2, 5}, ρ in {1, 2, 5, 10}, [0, 1] periodic, 101 frames to t = 1, two waves of the lowest
four, normalised to [0, 1]. For one file of PDEBench give one ν and one ρ: `recipes.get("pdebench-reacdiff",
parameters={"D": choice("Nu", "D", 0.5), "r": choice("Rho", "r", 1.0)})`.
Deviations: ETDRK4, spectral in space, instead of second-order differences split from an exact logistic step; all
random numbers are independent (see initial.SineWaves), and differ between parameters.
Known errors of the original: in float32 its reaction factor exp(-ρ dt) with the diffusive step loses the reaction: 0 to
1.25 times the true one is applied, which depends on ν and the grid, and its issue 94 sees fields that tend to the mean
instead of 1; the same initial fields serve all parameters.
"""

PDEBENCH_ADVECTION = register(Recipe(
    name="pdebench-advection",
    summary="PDEBench 1D_Advection: waves carried along a periodic line, exactly",
    equation="AdvectionDiffusion",
    parameters={"velocity": choice("beta", "velocity", 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 7.0)},
    labels=("beta",),
    initial=Travelling(profile=SineWaves(modes=8)),
    fields=("u",),
    shape=(1024,),
    periodic=True,
    centering="cells",
    t_end=2.0,
    frames=201,
    method="exact",
))
"""PDEBench's 1-D advection, u_t + β u_x = 0; velocity is β.

As published: β in {0.1, 0.2, 0.4, 0.7, 1, 2, 4, 7}, [0, 1] periodic, 1024 cells, 201 frames to t = 2, two waves of the
lowest eight. For one file of PDEBench give one β.
Deviations: the exact solution instead of second-order upwind differences; random numbers as in initial.SineWaves.
Known errors of the original: the speed was off by a factor of two (its issue 46); the same initial fields serve all β.
"""

if hasattr(equations, "Burgers"):
    PDEBENCH_BURGERS = register(Recipe(
        name="pdebench-burgers",
        summary="PDEBench 1D_Burgers: waves that steepen on a periodic line",
        equation="Burgers",
        parameters={"nu": choice("Nu", "nu", 1e-3, 2e-3, 4e-3, 0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 1.0, 2.0, 4.0,
                                 scale=1 / pi)},
        fixed={"speed": 2.0},
        labels=("Nu",),
        initial=SineWaves(modes=8),
        fields=("u",),
        shape=(1024,),
        periodic=True,
        centering="cells",
        t_end=2.0,
        frames=201,
        conserved=("u",),
    ))
    """PDEBench's 1-D Burgers, u_t + (u²/2)_x = (ν/π) u_xx; nu is ν/π.

    As published: ν from 0.001 to 4, [0, 1] periodic, 1024 cells, 201 frames to t = 2, two waves of the lowest eight.
    For one file of PDEBench give one ν: the step is that of the largest ν that can be drawn.
    Deviations: second-order energy-preserving fluxes and forward Euler instead of upwind differences with CFL 0.25;
    random numbers as in initial.SineWaves. Shocks of ν < 0.003 are not resolved by 1024 cells, there or here.
    Known errors of the original: domain and speed were wrong before October 2023 (its issue 51); the same initial
    fields serve all ν.
    """

# -- The Well ---------------------------------------------------------------------------------------------------------

WELL_PATTERNS = Table(
    ("pattern", "F", "k"),
    (
        ("gliders", 0.014, 0.054),
        ("bubbles", 0.098, 0.057),
        ("maze", 0.029, 0.057),
        ("worms", 0.058, 0.065),
        ("spirals", 0.018, 0.051),
        ("spots", 0.03, 0.062),
    ),
)

WELL_GRAY_SCOTT = register(Recipe(
    name="well-gray-scott",
    summary="The Well gray_scott_reaction_diffusion: six patterns, spectral, 1001 frames to t = 10000",
    equation="GrayScott",
    parameters={"pattern": WELL_PATTERNS},
    labels=("pattern",),
    initial=OneOf((GrayScottBlobs(), GrayScottFourier())),
    fields=("A", "B"),
    shape=(128, 128),
    extent=((-1.0, 1.0), (-1.0, 1.0)),
    periodic=True,
    t_end=10000.0,
    frames=1001,
    method="etdrk4",
    dt=2.0,
))
"""The Well's Gray–Scott: Du = 2e-5, Dv = 1e-5 on [-1, 1]² periodic, 128², a frame every 10.

As published: six pairs (F, k), "gaussians" and "fourier" starts, ETDRK4, dealiased by the 2/3 rule.
Deviations: the kind of start is drawn, so half of the trajectories have each, not exactly 100; steps of 2 instead of 1,
which changes the solution at t = 200 by less than 0.3 %; trajectories that blow up are refused or drawn again, and
listed, where the original skips them silently.
Known errors of the original: one of its documents has a sign wrong in the equation (its pull request 86); about 100
trajectories, mostly gliders, become stationary and stay in the data. At 128² the starts are barely resolved: compared
with 256² without dealiasing, the dealiased solution is off by 0.6 to 9 % at t = 200, ours as the original.
"""

# -- APEBench ---------------------------------------------------------------------------------------------------------

APEBENCH_DIFFUSION = register(Recipe(
    name="apebench-diffusion",
    summary="APEBench diffusion of difficulty 4: Fourier series on a periodic line, exact",
    equation="Heat",
    parameters={"diffusivity": 4 / (2 * 160**2)},
    initial=FourierSeries(modes=6, basis="fourier", zero_mean=True),
    fields=("u",),
    shape=(160,),
    periodic=True,
    t_end=50.0,
    frames=51,
    method="spectral",
    conserved=("u",),
))
"""APEBench's scenario diff_diff: γ₂ = 4, so α₂ = γ₂ / (2 N²) a frame with 160 points, L = 1 and Δt = 1.

As published: "fourier;5;true;true" starts (waves up to the fifth, no mean, largest value 1), 50 frames to train with.
Deviations: none known but the random numbers. At another resolution the diffusivity stays, not the difficulty.
"""

# -- the other equations ----------------------------------------------------------------------------------------------

FISHER = register(Recipe(
    name="fisher-kpp",
    summary="Fisher–KPP fronts that spread from blobs, no flux, 2-D",
    equation="FisherKPP",
    parameters={"D": LogUniform(2e-4, 2e-3), "r": Uniform(0.5, 2.0)},
    initial=Blobs(count=(1, 8), radius=(0.02, 0.06)),
    boundary=Neumann(0.0),
    fields=("u",),
    shape=(128, 128),
    centering="cells",
    t_end=10.0,
))

ALLEN_CAHN = register(Recipe(
    name="allen-cahn",
    summary="Allen–Cahn domains that coarsen from noise, periodic, 2-D",
    equation="AllenCahn",
    initial=Clamped(DiffusedNoise(length=0.02), -1.0, 1.0),
    fields=("u",),
    shape=(128, 128),
    extent=100.0,
    periodic=True,
    t_end=40.0,
))

FITZHUGH_NAGUMO = register(Recipe(
    name="fitzhugh-nagumo",
    summary="FitzHugh–Nagumo patterns from smooth fields, no flux, 2-D",
    equation="FitzHughNagumo",
    parameters={"Du": LogUniform(5e-4, 2e-3), "Dv": 5e-3, "k": Uniform(-5e-2, 5e-2)},
    initial=Components((DiffusedNoise(length=0.03), DiffusedNoise(length=0.03))),
    boundary=Neumann(0.0),
    fields=("u", "v"),
    shape=(128, 128),
    extent=((-1.0, 1.0), (-1.0, 1.0)),
    centering="cells",
    t_end=20.0,
))

BRUSSELATOR = register(Recipe(
    name="brusselator",
    summary="Brusselator waves from noise about the steady state, periodic, 2-D",
    equation="Brusselator",
    initial=Components((Clamped(DiffusedNoise(length=0.02), 0.9, 1.1), Clamped(DiffusedNoise(length=0.02), 2.9, 3.1))),
    fields=("u", "v"),
    shape=(128, 128),
    extent=64.0,
    periodic=True,
    t_end=20.0,
))

SCHNAKENBERG = register(Recipe(
    name="schnakenberg",
    summary="Schnakenberg spots from noise about the steady state, periodic, 2-D",
    equation="Schnakenberg",
    initial=Components((Clamped(DiffusedNoise(length=0.02), 0.9, 1.1), Clamped(DiffusedNoise(length=0.02), 0.8, 1.0))),
    fields=("u", "v"),
    shape=(128, 128),
    extent=64.0,
    periodic=True,
    t_end=60.0,
))

SIR = register(Recipe(
    name="sir",
    summary="An epidemic that spreads from seeds, no flux, 2-D",
    equation="SIR",
    initial=Seeds(background=(1.0, 0.0, 0.0), inside=(0.9, 0.1, 0.0), count=(1, 4), noise=0.0),
    boundary=Neumann(0.0),
    fields=("s", "i", "r"),
    shape=(128, 128),
    extent=64.0,
    centering="cells",
    t_end=40.0,
))

if hasattr(equations, "CahnHilliard"):
    CAHN_HILLIARD = register(Recipe(
        name="cahn-hilliard",
        summary="Cahn–Hilliard separation from noise, periodic, 2-D",
        equation="CahnHilliard",
        initial=Clamped(DiffusedNoise(length=0.01), -0.1, 0.1),
        fields=("u",),
        shape=(128, 128),
        extent=128.0,
        periodic=True,
        t_end=200.0,
        conserved=("u",),
    ))

if hasattr(equations, "SwiftHohenberg"):
    SWIFT_HOHENBERG = register(Recipe(
        name="swift-hohenberg",
        summary="Swift–Hohenberg stripes and spots from noise, periodic, 2-D",
        equation="SwiftHohenberg",
        initial=Clamped(DiffusedNoise(length=0.01), -0.1, 0.1),
        fields=("u",),
        shape=(128, 128),
        extent=100.0,
        periodic=True,
        t_end=50.0,
    ))

__all__ = ["ALLEN_CAHN", "APEBENCH_DIFFUSION", "BRUSSELATOR", "FISHER", "FITZHUGH_NAGUMO", "PDEBENCH_ADVECTION",
           "PDEBENCH_DIFF_REACT", "PDEBENCH_DIFF_SORP", "PDEBENCH_REACDIFF", "SCHNAKENBERG", "SIR", "WELL_GRAY_SCOTT",
           "WELL_PATTERNS", "choice"]
