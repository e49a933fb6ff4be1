"""How fast a graphics card's memory is, by the card's name: makers' published figures in GB/s.

Generation reads every weight once a token, so this number bounds its speed. A name is looked up whole: "RTX 4090
Laptop" is another card than "RTX 4090". Where one name was sold with several memories, the figure is the usual card's.
"""

from __future__ import annotations

import re

_NOT_TELLING = frozenset({"nvidia", "geforce", "amd", "radeon", "intel", "graphics", "gpu"})

_GB_PER_SECOND = {
    # Apple
    "apple m1": 68,
    "apple m1 pro": 200,
    "apple m1 max": 400,
    "apple m1 ultra": 800,
    "apple m2": 100,
    "apple m2 pro": 200,
    "apple m2 max": 400,
    "apple m2 ultra": 800,
    "apple m3": 100,
    "apple m3 pro": 150,
    "apple m3 ultra": 819,
    "apple m4": 120,
    "apple m4 pro": 273,
    "apple m5": 153,
    # NVIDIA; only where NVML does not tell clock and bus width
    "rtx 2060": 336,
    "rtx 2060 super": 448,
    "rtx 2070": 448,
    "rtx 2070 super": 448,
    "rtx 2080": 448,
    "rtx 2080 super": 496,
    "rtx 2080 ti": 616,
    "rtx 3050": 224,
    "rtx 3060": 360,
    "rtx 3060 laptop": 336,
    "rtx 3060 ti": 448,
    "rtx 3070": 448,
    "rtx 3070 laptop": 448,
    "rtx 3070 ti": 608,
    "rtx 3080": 760,
    "rtx 3080 laptop": 448,
    "rtx 3080 ti": 912,
    "rtx 3090": 936,
    "rtx 3090 ti": 1008,
    "rtx 4050 laptop": 192,
    "rtx 4060": 272,
    "rtx 4060 laptop": 256,
    "rtx 4060 ti": 288,
    "rtx 4070": 504,
    "rtx 4070 laptop": 256,
    "rtx 4070 super": 504,
    "rtx 4070 ti": 504,
    "rtx 4070 ti super": 672,
    "rtx 4080": 717,
    "rtx 4080 laptop": 432,
    "rtx 4080 super": 736,
    "rtx 4090": 1008,
    "rtx 4090 d": 1008,
    "rtx 4090 laptop": 576,
    "rtx 5050": 320,
    "rtx 5060": 448,
    "rtx 5060 laptop": 384,
    "rtx 5060 ti": 448,
    "rtx 5070": 672,
    "rtx 5070 laptop": 384,
    "rtx 5070 ti": 896,
    "rtx 5070 ti laptop": 672,
    "rtx 5080": 960,
    "rtx 5080 laptop": 896,
    "rtx 5090": 1792,
    "rtx 5090 laptop": 896,
    "gb10": 273,
    # AMD
    "rx 6400": 128,
    "rx 6500 xt": 144,
    "rx 6600": 224,
    "rx 6600 xt": 256,
    "rx 6650 xt": 280,
    "rx 6700": 320,
    "rx 6700 xt": 384,
    "rx 6750 xt": 432,
    "rx 6800": 512,
    "rx 6800 xt": 512,
    "rx 6900 xt": 512,
    "rx 6950 xt": 576,
    "rx 7600": 288,
    "rx 7600 xt": 288,
    "rx 7700 xt": 432,
    "rx 7800 xt": 624,
    "rx 7900 gre": 576,
    "rx 7900 xt": 800,
    "rx 7900 xtx": 960,
    "rx 9060 xt": 320,
    "rx 9070": 640,
    "rx 9070 gre": 432,
    "rx 9070 xt": 640,
    "8060s": 256,  # Strix Halo: its memory is soldered, so this one of the integrated has one figure
    # Intel
    "arc a310": 124,
    "arc a380": 186,
    "arc a580": 512,
    "arc a750": 512,
    "arc a770": 560,
    "arc b570": 380,
    "arc b580": 456,
    "arc pro b50": 224,
    "arc pro b60": 456,
}

# One name, two chips: the number of graphics cores tells which.
_GB_PER_SECOND_BY_CORES = {
    ("apple m3 max", 30): 300,
    ("apple m3 max", 40): 400,
    ("apple m4 max", 32): 410,
    ("apple m4 max", 40): 546,
}


def bytes_per_second(name: str, cores: int | None = None) -> int | None:
    """`bytes_per_second("NVIDIA GeForce RTX 4090") == 1_008_000_000_000`; None for a card that is not listed."""
    words = re.sub(r"\((r|tm)\)", " ", name.lower()).split()
    plain_name = " ".join(word for word in words if word not in _NOT_TELLING)
    of_chip = _GB_PER_SECOND_BY_CORES.get((plain_name, cores or 0))
    figure = of_chip or _GB_PER_SECOND.get(plain_name)
    return figure * 10**9 if figure else None
