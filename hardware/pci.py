"""Names of graphics cards by their PCI identity, where no driver or tool tells one. The public lists of identities are
pciids (Intel) and libdrm's amdgpu.ids (AMD, where one device id covers several cards and the revision decides).
"""

from __future__ import annotations

_AMD = {
    ("0x73a5", "0xc0"): "AMD Radeon RX 6950 XT",
    ("0x73af", "0xc0"): "AMD Radeon RX 6900 XT",
    ("0x73bf", "0xc0"): "AMD Radeon RX 6900 XT",
    ("0x73bf", "0xc1"): "AMD Radeon RX 6800 XT",
    ("0x73bf", "0xc3"): "AMD Radeon RX 6800",
    ("0x73df", "0xc0"): "AMD Radeon RX 6750 XT",
    ("0x73df", "0xc1"): "AMD Radeon RX 6700 XT",
    ("0x73df", "0xc5"): "AMD Radeon RX 6700 XT",
    ("0x73ef", "0xc1"): "AMD Radeon RX 6650 XT",
    ("0x73ff", "0xc1"): "AMD Radeon RX 6600 XT",
    ("0x73ff", "0xc7"): "AMD Radeon RX 6600",
    ("0x743f", "0xc1"): "AMD Radeon RX 6500 XT",
    ("0x743f", "0xc7"): "AMD Radeon RX 6400",
    ("0x744c", "0xc8"): "AMD Radeon RX 7900 XTX",
    ("0x744c", "0xcc"): "AMD Radeon RX 7900 XT",
    ("0x744c", "0xce"): "AMD Radeon RX 7900 GRE",
    ("0x747e", "0xc8"): "AMD Radeon RX 7800 XT",
    ("0x747e", "0xff"): "AMD Radeon RX 7700 XT",
    ("0x7480", "0xc0"): "AMD Radeon RX 7600 XT",
    ("0x7480", "0xcf"): "AMD Radeon RX 7600",
    ("0x7550", "0xc0"): "AMD Radeon RX 9070 XT",
    ("0x7550", "0xc2"): "AMD Radeon RX 9070 GRE",
    ("0x7550", "0xc3"): "AMD Radeon RX 9070",
    ("0x7590", "0xc0"): "AMD Radeon RX 9060 XT",
    ("0x1586", "0xc1"): "AMD Radeon 8060S Graphics",
    ("0x1586", "0xd1"): "AMD Radeon 8060S Graphics",
}

# Integrated ones: any revision has the same name.
_AMD_INTEGRATED = {
    "0x150e": "AMD Radeon 880M / 890M Graphics",
    "0x1586": "AMD Radeon 8050S / 8060S Graphics",
    "0x15bf": "AMD Radeon 740M / 760M / 780M Graphics",
    "0x1638": "AMD Radeon Vega Graphics",
    "0x163f": "AMD Custom GPU 0405",
    "0x164e": "AMD Radeon 610M",
    "0x1681": "AMD Radeon 660M / 680M",
    "0x1900": "AMD Radeon 760M / 780M Graphics",
}

_INTEL_ARC = {
    "0x5690": "Intel Arc A770M",
    "0x5691": "Intel Arc A730M",
    "0x5692": "Intel Arc A550M",
    "0x5693": "Intel Arc A370M",
    "0x5694": "Intel Arc A350M",
    "0x56a0": "Intel Arc A770",
    "0x56a1": "Intel Arc A750",
    "0x56a2": "Intel Arc A580",
    "0x56a5": "Intel Arc A380",
    "0x56a6": "Intel Arc A310",
    "0xe20b": "Intel Arc B580",
    "0xe20c": "Intel Arc B570",
    "0xe211": "Intel Arc Pro B60",
    "0xe212": "Intel Arc Pro B50",
}

_INTEL_INTEGRATED = {
    "0x3e91": "Intel UHD Graphics 630",
    "0x3e92": "Intel UHD Graphics 630",
    "0x3e98": "Intel UHD Graphics 630",
    "0x3e9b": "Intel UHD Graphics 630",
    "0x3ea0": "Intel UHD Graphics 620",
    "0x3ea9": "Intel UHD Graphics 620",
    "0x4680": "Intel UHD Graphics 770",
    "0x4682": "Intel UHD Graphics 730",
    "0x4690": "Intel UHD Graphics 770",
    "0x4692": "Intel UHD Graphics 730",
    "0x46a6": "Intel Iris Xe Graphics",
    "0x46a8": "Intel Iris Xe Graphics",
    "0x4c8a": "Intel UHD Graphics 750",
    "0x5917": "Intel UHD Graphics 620",
    "0x64a0": "Intel Arc Graphics 130V / 140V",
    "0x7d51": "Intel Arc Graphics 130T / 140T",
    "0x7d55": "Intel Arc Graphics",
    "0x7d67": "Intel Graphics",
    "0x9a40": "Intel Iris Xe Graphics",
    "0x9a49": "Intel Iris Xe Graphics",
    "0x9bc5": "Intel UHD Graphics 630",
    "0x9bc8": "Intel UHD Graphics 630",
    "0xa780": "Intel UHD Graphics 770",
    "0xa7a0": "Intel Iris Xe Graphics",
    "0xa7a1": "Intel Iris Xe Graphics",
}

# Where Intel's own chips have always had their graphics; a card in a slot is behind a bridge, on another bus.
_INTEL_INTEGRATED_ADDRESS = "0000:00:02.0"

UNNAMED_AMD, UNNAMED_INTEL = "AMD GPU", "Intel GPU"


def amd_name(device: str, revision: str) -> str:
    """`amd_name("0x744c", "0xc8")`; the bare device id where neither list knows it."""
    return _AMD.get((device, revision)) or _AMD_INTEGRATED.get(device) or f"{UNNAMED_AMD} {device}".strip()


def intel_name(device: str) -> str:
    """`intel_name("0x56a0")`; the bare device id where neither list knows it."""
    return _INTEL_ARC.get(device) or _INTEL_INTEGRATED.get(device) or f"{UNNAMED_INTEL} {device}".strip()


def intel_is_integrated(device: str, address: str | None) -> bool:
    """Whether it works in the main memory; in a virtual machine a passed-through card may sit anywhere."""
    return device in _INTEL_INTEGRATED or (device not in _INTEL_ARC and address == _INTEL_INTEGRATED_ADDRESS)
