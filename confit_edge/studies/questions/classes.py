"""Does PairTune gain more over vanilla fine-tuning where there are more classes?"""

from __future__ import annotations

from confit_edge.data.corpus import Corpus
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import rivals
from confit_edge.studies.phrases import VANILLA_PROBES, against_vanilla, versus, widened
from confit_edge.studies.results import Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.subset import check_all_tested, clips_per_class
from confit_edge.studies.trial import Scalar, Subset, Trial

CLASSES = (2, 5, 10, 20, 50)


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan the three objectives on growing numbers of classes, up to all; each draw is part of the next."""
    check_all_tested(corpus)
    there = len(clips_per_class(corpus))
    counts = [*(count for count in CLASSES if count < there), there]
    return [trial for count in counts for trial in rivals(Trial({"classes": count}, recipe, Subset(classes=count)))]


def conclude(results: Results) -> list[str]:
    """State the gain at each number of classes, and whether it differs between the most and the fewest."""
    counts = results.values("classes")
    comparisons = len(counts) * len(VANILLA_PROBES)
    lines = []
    for count in counts:
        lines += against_vanilla(
            results,
            "PairTune + linear probe",
            _ours(count),
            {"classes": count},
            comparisons=comparisons,
            where=f"With {count} classes",
        )
    lines += widened(comparisons)
    if len(counts) < 2:
        return lines
    fewest, most = counts[0], counts[-1]
    for metric, rival in VANILLA_PROBES.items():
        theirs = [Side(metric, {"objective": "finetune", "classes": count}) for count in (fewest, most)]
        growth = results.contrast([(1, _ours(most)), (-1, theirs[1]), (-1, _ours(fewest)), (1, theirs[0])])
        lines.append(versus(f"the gain over {rival} with {most} classes", f"that with {fewest}", growth))
    return lines


def _ours(count: Scalar) -> Side:
    return Side("linear", {"objective": "pairtune", "classes": count})


STUDY = Study(
    name="classes",
    question="Does PairTune gain more over vanilla fine-tuning where there are more classes?",
    plan=plan,
    conclude=conclude,
    chart=Chart("classes"),
)
