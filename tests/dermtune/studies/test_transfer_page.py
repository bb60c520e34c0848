import pandas as pd

from dermtune.studies.networks import NAMES
from dermtune.studies.transfer_page import render_transfer, transfer_curves, verdict_on


def test_the_page_says_what_the_same_network_gained() -> None:
    history = pd.DataFrame(
        {"network": name, "share": share, "lesions": 10 * share, "seed": 0, "epoch": epoch, "val_auroc": 0.7}
        for name in NAMES
        for share in (0.5, 1.0)
        for epoch in range(3)
    )
    curves = pd.DataFrame(
        {"network": name, "curve": curve, "measure": measure, "value": value, "low": 0.1, "high": 0.9}
        for name in NAMES
        for curve in ("epochs", "lesions")
        for measure, value in (
            ("start", 0.61),
            ("slope", 0.01),
            ("asymptote", 0.91 if name == "whole" else 0.75),
        )
    )
    networks = pd.DataFrame(
        {"name": name, "title": f"<{name}>", "parameters": 1e6, "trained": 10, "unshared": 2e9}
        | {"multiply_adds": 1, "seconds": 1.5, "joules": 2000.0, "joules_per_point": 50.0}
        for name in NAMES
    )
    figure = transfer_curves(history, dict.fromkeys(NAMES, "x"), pretrained=["whole"], note="n = 3")
    page = render_transfer(networks, curves, figure, classes=7, note="3 lesions", verdict=verdict_on(curves))
    assert "AUROC 0.910 from ImageNet&#39;s weights, 0.750 from random ones" in " ".join(page.split())
    assert "&lt;linear&gt;" in page
    assert "<linear>" not in page
