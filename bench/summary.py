"""Print the README's table of measurements from a result file of bench_step.py."""

import argparse
import json
import sys
from pathlib import Path

# Appended, so that an installed fusedtricks comes before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import report

EXAMPLE = "python bench/summary.py bench/results/epyc-zen4-4-cores/step.json --threads 4"
HEADER = ("whole `optimizer.step()`", "torch", "fusedtricks", "ratio", "of streaming limit")
# Title, workload, case.
LINES = (
    ("ResNet-50, AdamW", "resnet50", "adamw"),
    ("ResNet-50, clip + centralize + AdamW", "resnet50", "adamw-combined"),
    ("ResNet-50, clip + centralize + SGD momentum", "resnet50", "sgd-combined"),
    (
        "ResNet-50 in bf16 with fp32 masters, the same with AdamW",
        "resnet50",
        "adamw-bf16-combined",
    ),
    ("ResNet-50, RMSprop", "resnet50", "rmsprop"),
    ("ViT-B/16, clip + centralize + AdamW", "vit_b_16", "adamw-combined"),
    ("GPT-2 small, clip + centralize + AdamW", "gpt2_small", "adamw-combined"),
    ("2,000 tensors of 256, AdamW", "small_2000", "adamw"),
)


def make_table(results: list[report.Row], *, n_threads: int) -> str:
    """Return a Markdown table of our step beside the fastest way of torch's.

    Args:
        results: Rows of a result file.
        n_threads: Which of its thread counts to show.
    """
    cells = []
    for title, workload, case in LINES:
        rows = {
            row["contender"]: row
            for row in results
            if (row["workload"], row["case"], row["threads"]) == (workload, case, n_threads)
        }
        ours = rows["ours"]
        torch_ms = rows[ours["baseline"]]["median_ms"]
        share = ours["share_of_limit"]
        cells.append(
            (
                title,
                f"{torch_ms:.1f} ms",
                f"{ours['median_ms']:.1f} ms",
                f"**{ours['speedup']:.2f}x**",
                f"{share:.0%}",
            )
        )
    return report.markdown_table(HEADER, cells)


def main(arguments: list[str] | None = None) -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="JSON file that bench_step.py wrote")
    parser.add_argument("--threads", type=report.positive, default=4)
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text(encoding="utf-8"))["results"]
    print(make_table(results, n_threads=options.threads))


if __name__ == "__main__":
    main()
