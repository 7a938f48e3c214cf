"""Adaptive video distillation's ablations on the embedded teacher, beside the paper's Table 2, Fig. 12 and Fig. 6.

    python benchmarks/ablations/avd.py terms lagging threshold migration --jobs 2 --write

The videos are rendered and encoded first, once for all arms; the study `terms` wants the interpolator of
recipes/interpolator_tiny.yaml besides, and trains it if it is missing.
"""

from study import ROOT, RUNS, Study, main

INTERPOLATOR = RUNS / "interpolator_tiny"
STORE = (f"data.videos.path={RUNS}/tiny_videos_store",)
HALF_RATE = (f"half_rate.interpolator={INTERPOLATOR}",)
NEEDS = (("interpolator_tiny.yaml", INTERPOLATOR, STORE),)
CLOTH = (
    f"data.videos.path={RUNS}/cloth_videos_store",
    "data.videos.source=embedded:cloth",
    f"data.prompts={ROOT}/recipes/prompts/cloth_train.txt",
    f"evaluation.prompts={ROOT}/recipes/prompts/cloth_heldout.txt",
)
DMD = ("method.regression=0", "method.temporal=0", "method.threshold=null")
TEMPORAL = ("method.regression=0",)
REGRESSION = (
    "method.adaptive=false",
    "method.regression=0.5",
)  # the strength of the adaptive one where a loss is as usual
# The fake score moves as often as the student and at a twentieth of its rate, so that it never describes its samples.
LAGGING = ("method.student_every=1", "optim.student.lr=2e-4", "optim.fake_score.lr=1e-5", "train.steps=400")
TERMS = {
    "DMD": DMD,
    "+ temporal": TEMPORAL,
    "+ temporal + regression": REGRESSION,
    "+ temporal + adaptive regression": (),
}
SEEN = ("all", "preserved", "dynamic", "saturation", "motion")
# Where choices are made: held-out captions, noise and training seeds that nothing is reported on.
CHOOSING = (
    f"evaluation.prompts={ROOT}/recipes/prompts/shapes_dev.txt",
    "evaluation.samples=256",
    "evaluation.seed=3000",
)

STUDIES = {
    "terms": Study(
        question="Table 2: what do the temporal loss, the regression, its adaptive weight and half rate add to DMD?",
        recipe="tiny_avd.yaml",
        common=(*STORE, *HALF_RATE),
        arms=TERMS | {"full, at half rate": ()},
        samplers={"full, at half rate": "student_half_rate"},
        against="DMD",
        shown=SEEN,
        needs=NEEDS,
    ),
    "lagging": Study(
        question="The same where the fake score lags behind the student, and DMD fails",
        recipe="tiny_avd.yaml",
        common=(*STORE, *LAGGING),
        arms=TERMS,
        against="DMD",
        shown=SEEN,
    ),
    "threshold": Study(
        question="Fig. 12: where should the temporal loss be cut off? At ten times its weight, or nothing can be seen",
        recipe="tiny_avd.yaml",
        common=(*STORE, "train.steps=300"),
        arms={
            "no temporal loss": ("method.temporal=0", "method.threshold=null"),
            **{f"tau = {tau}": ("method.temporal=0.5", f"method.threshold={tau}") for tau in (1.0, 0.6)},
        },
        against="no temporal loss",
        shown=SEEN,
    ),
    "motion": Study(
        question="How strong must the temporal loss be for students to move as often as their teacher? (--seeds 10,11)",
        recipe="tiny_avd.yaml",
        common=(*STORE, *CHOOSING),
        arms={
            "w_temp = 0.05": (),
            "w_temp = 0.2": ("method.temporal=0.2",),
            "w_temp = 0.5": ("method.temporal=0.5",),
            "w_temp = 0.5, tau = 0.6": ("method.temporal=0.5", "method.threshold=0.6"),
        },
        against="w_temp = 0.05",
        shown=SEEN,
    ),
    "migration": Study(
        question="Fig. 6: does the student take up the domain of the real videos while it is distilled?",
        recipe="tiny_avd.yaml",
        common=CLOTH,
        arms={
            "DMD": DMD,
            "plain regression": ("method.adaptive=false", "method.regression=4"),
            "adaptive regression": ("method.regression=8",),  # at 1 no clip changes its domain (docs/log.md)
        },
        against="DMD",
        shown=("cloth", "preserved", "dynamic", "shape"),
    ),
}

if __name__ == "__main__":
    main(__doc__, STUDIES)
