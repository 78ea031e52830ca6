"""The networks of the pruning benchmark: torchvision's classifiers, segmenters and one-stage
detectors, one small network of each family of timm, and vision models of transformers.

Detectors come without the choice of boxes behind them (`detection/`: backbone, pyramid and dense
heads) and whole, with non-maximum suppression inside (`part/`), where `prune` is given
`part="backbone"`.

With a CPU build of torch, torchvision's own wheel lacks its compiled operators; declaring their
schemas is enough for the architectures.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from mirabelle.sources.torchvision import declared

TIMM = [
    "beit_base_patch16_224",
    "halonet_h1",
    "repvgg_a0",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "vit_tiny_patch16_dinov3_qkvb",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gemma4_vit_167m",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "mambaout_femto",
    "coatnet_nano_rw_224",
    "poolformerv2_s12",
    "gmlp_ti16_224",
    "mobilenetv3_small_050",
    "mobilenetv5_base",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap",
    "nasnetalarge",
    "nest_tiny",
    "nextvit_small",
    "nf_resnet26",
    "pit_ti_224",
    "pnasnet5large",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "resnet26",
    "resnetv2_50x1_bit",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window16_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_relpos_small_patch16_224",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
]
SIZES = {
    "deepseek_vit_412m": 252,
    "gemma4_vit_167m": 384,
}  # pixels; at their own 546 and 768 one pass takes 21 and 14 s on one core
DETECTORS = [
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
]
TRANSFORMERS = ["vit", "swin", "segformer", "detr"]


def _nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """The boxes that overlap none of higher score by more than `threshold`, by falling score: what
    the missing kernel does.
    """
    from torchvision.ops import box_iou

    overlap, left, kept = box_iou(boxes, boxes), scores.argsort(descending=True), []
    while len(left):
        kept.append(left[0])
        left = left[1:][overlap[left[0], left[1:]] <= threshold]
    return torch.stack(kept) if kept else left


if not hasattr(torch.ops.torchvision, "nms"):
    declared().impl("nms", _nms, "CPU")
    import torchvision.extension

    torchvision.extension._has_ops = lambda: True


class Dense(nn.Module):
    """A one-stage detector up to the scores and offsets of every anchor."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        parts = (detector.get_submodule(n) for n in ("backbone", "head"))
        self.backbone, self.head = parts

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.head(list(self.backbone(x).values()))


def names() -> list[str]:
    """`LIBRARY/NAME`."""
    import torchvision.models as models

    classifiers = [n for n in models.list_models(module=models) if not n.startswith("quantized")]
    return [
        *(
            f"torchvision/{n}"
            for n in [*classifiers, *models.list_models(module=models.segmentation)]
        ),
        *(f"timm/{n}" for n in TIMM),
        *(f"transformers/{n}" for n in TRANSFORMERS),
        *(f"detection/{n}" for n in DETECTORS),
        *(f"part/{n}" for n in DETECTORS),
    ]


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with random weights from a fixed seed, in eval mode, and an example of its own
    size (`SIZES` where that is too large): two images, or one large one.
    """
    torch.manual_seed(0)
    library, _, plain = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, size = _BUILDERS[library](plain)
    return model.eval(), torch.randn(1 if size[-1] > 500 else 2, *size)


def _torchvision(plain: str) -> tuple[nn.Module, tuple[int, ...]]:
    import torchvision.models as models

    options = (
        {"weights_backbone": None}
        if plain in models.list_models(module=models.segmentation)
        else {}
    )
    options |= (
        {"aux_logits": True, "init_weights": True} if plain in ("googlenet", "inception_v3") else {}
    )
    return models.get_model(plain, weights=None, **options), (
        3,
        299,
        299,
    ) if plain == "inception_v3" else (3, 224, 224)


def _timm(plain: str) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    model = timm.create_model(plain, pretrained=False)
    size = SIZES.get(plain)
    return model, (3, size, size) if size else tuple(
        model.default_cfg.get("input_size") or (3, 224, 224)
    )


def _transformers(plain: str) -> tuple[nn.Module, tuple[int, ...]]:
    import transformers as t

    if plain == "vit":
        return t.ViTForImageClassification(t.ViTConfig()), (3, 224, 224)
    if plain == "swin":
        return t.SwinForImageClassification(t.SwinConfig()), (3, 224, 224)
    if plain == "segformer":
        return t.SegformerForSemanticSegmentation(t.SegformerConfig()), (3, 224, 224)
    backbone = t.ResNetConfig(out_features=["stage4"])
    return t.DetrForObjectDetection(
        t.DetrConfig(backbone_config=backbone, use_timm_backbone=False)
    ), (3, 320, 320)


def _detector(plain: str) -> tuple[nn.Module, tuple[int, ...]]:
    import torchvision.models as models

    size = 320 if "320" in plain else 300 if "300" in plain else 320
    return models.get_model(plain, weights=None, weights_backbone=None), (3, size, size)


def _dense(plain: str) -> tuple[nn.Module, tuple[int, ...]]:
    detector, size = _detector(plain)
    return Dense(detector), size


_BUILDERS = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "detection": _dense,
    "part": _detector,
}
