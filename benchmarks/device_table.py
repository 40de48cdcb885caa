"""The results of ``device.py`` as Markdown."""

from __future__ import annotations

from typing import Any

PRECISIONS = ("fp32", "tf32", "bf16")


def markdown(found: dict[str, Any]) -> str:
    """Tables of memory and time, of gradients, of kernels; and what is missing."""
    machine, versions = found["hardware"], found["versions"]
    settings = found["settings"]
    lines = [
        f"{machine.get('gpu', machine['cpu'])}, torch {versions['torch']}, timm {versions.get('timm')}, batch "
        f"{settings['batch']}, median of {settings['rounds']} steps, {found['date']}"
        + (" (a dry run: nothing of a GPU)" if found["dry_run"] else "")
    ]
    if found["tests"]:
        lines.append(f"Tests: {found['tests']['summary'] or 'none'}.")
    for part in (_steps, _epochs, _gradients, _kernels, _profiles, _skipped):
        if shown := part(found):
            lines += ["", *shown]
    return "\n".join(lines)


def _steps(found: dict[str, Any]) -> list[str]:
    """A row for each backbone and configuration: peak beside the simulated one, step time beside s2a exact's."""
    if not found["steps"]:
        return []
    lines = [
        "| backbone | method | "
        + " | ".join(f"peak MB (simulated), {number}" for number in ("fp32", "bf16"))
        + " | "
        + " | ".join(f"ms / step (of exact), {number}" for number in PRECISIONS)
        + " |",
        "|---" * 7 + "|",
    ]
    for (backbone, name), rows in _by_name(found).items():
        exact = _by_name(found).get((backbone, "s2a exact"), {})
        cells = [_memory(rows.get(number)) for number in ("fp32", "bf16")]
        cells += [_time(rows.get(number), exact.get(number)) for number in PRECISIONS]
        lines.append(f"| {backbone} | {name} | {' | '.join(cells)} |")
    return lines


def _epochs(found: dict[str, Any]) -> list[str]:
    """A row for each backbone and method: seconds of an epoch, ms per scored image."""
    if not found.get("epochs"):
        return []
    images = found["epochs"][0]["images"]
    lines = [
        f"| backbone | method | s / epoch of {images} images | ms / scored image | peak MB |",
        "|---|---|---|---|---|",
    ]
    for row in found["epochs"]:
        peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}"
        scored = row["scoring_seconds"] / row["images"] * 1e3
        lines.append(f"| {row['backbone']} | {row['name']} | {row['epoch_seconds']:.2f} | {scored:.2f} | {peak} |")
    return lines


def _gradients(found: dict[str, Any]) -> list[str]:
    """Cosine to exact gradients of the same precision, in brackets the relative error; exact ones beside fp32."""
    lines = []
    for row in found["steps"]:
        other = "to_exact_fp32" if row["configuration"] in ("s2a exact", "lora") else "to_exact"
        if other not in row or (other == "to_exact_fp32" and row["precision"] == "fp32"):
            continue
        cells = [f"{group} {v['cosine']:.4f} ({v['relative']:.3f})" for group, v in sorted(row[other].items())]
        beside = "exact fp32" if other == "to_exact_fp32" else "exact, the same precision"
        lines.append(
            f"| {row['backbone']} | {row['configuration']} | {row['precision']} | {beside} | {', '.join(cells)} |"
        )
    if not lines:
        return []
    files = ", ".join(f"{name}: {file}" for name, file in found["weights"]["files"].items())
    return [
        (f"Trained weights: {files}. " if files else "") + found["weights"]["note"],
        "",
        "| backbone | method | precision | beside | cosine (relative error) by group |",
        "|---|---|---|---|---|",
        *lines,
    ]


def _kernels(found: dict[str, Any]) -> list[str]:
    if not found["kernels"]:
        return []
    lines = ["| operator | dtype | columns | by | us | reference us | of copy |", "|---|---|---|---|---|---|---|"]
    for row in found["kernels"]:
        slow = row.get("reference_seconds")
        lines.append(
            f"| {row['operator']} | {row['dtype']} | {row['shape'][1]} | {row['by']} | {row['seconds'] * 1e6:.0f} | "
            f"{'' if slow is None else f'{slow * 1e6:.0f}'} | {row['copy_seconds'] / row['seconds']:.0%} |"
        )
    return lines


def _profiles(found: dict[str, Any]) -> list[str]:
    lines = []
    for profile in found["profile"]:
        total = profile["microseconds"]
        lines += [
            f"{profile['backbone']}, {profile['configuration']}, {profile['precision']}: {total / 1e3:.1f} ms",
            "",
            "| kernel | calls | ms | share |",
            "|---|---|---|---|",
        ]
        for kernel in profile["kernels"]:
            name = kernel["name"].replace("|", "/")[:80]
            spent = kernel["microseconds"]
            lines.append(f"| `{name}` | {kernel['calls']} | {spent / 1e3:.2f} | {spent / total:.1%} |")
        lines.append("")
    return lines[:-1]


def _skipped(found: dict[str, Any]) -> list[str]:
    return [f"- not measured: {row['what']} ({row['why'].rstrip('.')})" for row in found["skipped"]]


def _by_name(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Backbone and configuration -> precision -> row."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["steps"]:
        rows.setdefault((row["backbone"], row["configuration"]), {})[row["precision"]] = row
    return rows


def _memory(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    measured = f"{row['device_mb']:,.0f}" if "device_mb" in row else "-"
    return f"{measured} ({row['simulated_mb']:,.0f})"


def _time(row: dict[str, Any] | None, exact: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    beside = "" if exact is None else f" ({row['seconds'] / exact['seconds']:.2f})"
    return f"{row['seconds'] * 1e3:.1f}{beside}"
