"""AccVideo's ablations on the embedded teacher, beside the paper's Tables 3 and 4.

    python benchmarks/ablations/accvideo.py losses schedule --jobs 2 --write

The trajectories are recorded first, all steps of them, so that every schedule finds its key steps.
"""

from study import RUNS, Study, main

RECIPE = "tiny_accvideo.yaml"
STORE = (f"data.trajectories.path={RUNS}/tiny_accvideo_store", "data.trajectories.keep=all")
# Of the 50 levels at shift 5, those nearest to the paper's uniform times 1, .811, .606, .378, .226, 0.
UNIFORM = "[0, 27, 38, 45, 47, 50]"

STUDIES = {
    "losses": Study(
        question="Table 3: does the discriminator add to the trajectory loss, and does a head per key step?",
        recipe=RECIPE,
        common=STORE,
        arms={
            "trajectory loss": ("method.adversarial=0",),
            "+ one head": ("method.heads=single",),
            "+ one head per key step": (),
            "adversarial alone": ("method.trajectory=false",),
        },
        against="trajectory loss",
    ),
    "schedule": Study(
        question="Table 4: key steps at every n/m-th step of the shifted grid, or at uniform times?",
        recipe=RECIPE,
        common=STORE,
        arms={"every 10th step": (), "uniform times": (f"method.key_indices={UNIFORM}",)},
        against="every 10th step",
    ),
}

if __name__ == "__main__":
    main(__doc__, STUDIES)
