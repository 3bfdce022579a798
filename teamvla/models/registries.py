"""What can be chosen by name: policies, heads, encoders and fusions.

Each entry is a class that keeps its settings as ``Config``. A new one is a file with the class
and one line here, or in a package of its own an entry point of the group named below, or at run
time ``ACTION_HEAD_REGISTRY["mine"] = MyActionHead``. See docs/models.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teamvla.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from teamvla.models.encoders.base import TextEncoder, VisionBackbone
    from teamvla.models.encoders.sensors import SensorEncoder
    from teamvla.models.fusion.base import Fusion
    from teamvla.models.heads.base import ActionHead
    from teamvla.models.projectors import Projector
    from teamvla.models.temporal.base import Temporal

#: tells how to add to each
_PAGE = "docs/models.md"
MODELS: Registry[type[nn.Module]] = Registry(
    "model",
    {
        "act": "teamvla.models.act_policy:ACTPolicy",
        "bc": "teamvla.models.bc:BCPolicy",
        "diffusion_policy": "teamvla.models.diffusion_policy:ContinuousDiffusionPolicy",
        "mdlm": "teamvla.models.mdlm:DiffusionPolicy",
        "msg_passing": "teamvla.models.vla_msgpassing:MsgPassingVLA",
        "multi_sensor": "teamvla.models.multi_sensor:MultiSensorVLA",
        "openvla": "teamvla.models.openvla.wrapper:OpenVLAWrapper",
        "single_brain": "teamvla.models.vla_singlebrain:SingleBrainVLA",
        "smolvla": "teamvla.models.smolvla.wrapper:SmolVLAWrapper",
        "vla": "teamvla.models.vla:VLAPolicy",
        "vla_model": "teamvla.models.vla_model:VLAModel",
        "world_model": "teamvla.models.world.world_model:WorldModel",
    },
    "teamvla.models",
    _PAGE,
)
ACTION_HEAD_REGISTRY: Registry[type[ActionHead]] = Registry(
    "action head",
    {
        "mlp": "teamvla.models.heads.mlp:MLPActionHead",
        "flow": "teamvla.models.heads.flow:FlowMatchingActionHead",
        "diffusion": "teamvla.models.heads.diffusion:DiffusionActionHead",
        "gaussian": "teamvla.models.heads.gaussian:GaussianMLPActionHead",
        "transformer": "teamvla.models.heads.transformer:TransformerActionHead",
        "act": "teamvla.models.heads.act:ACTActionHead",
        "masked": "teamvla.models.heads.masked:MaskedDiffusionHead",
    },
    "teamvla.action_heads",
    _PAGE,
)
ENCODER_REGISTRY: Registry[type[VisionBackbone]] = Registry(
    "vision encoder",
    {
        "cnn": "teamvla.models.encoders.vision:ConvEncoder",
        "pretrained": "teamvla.models.encoders.pretrained:PretrainedVisionEncoder",
        "resnet": "teamvla.models.encoders.resnet:ResNetEncoder",
        "vit": "teamvla.models.encoders.vit:VisionEncoder",
    },
    "teamvla.encoders",
    _PAGE,
)
TEXT_ENCODER_REGISTRY: Registry[type[TextEncoder]] = Registry(
    "text encoder",
    {
        "characters": "teamvla.models.encoders.language:SimpleLanguageEncoder",
        "words": "teamvla.models.encoders.words:WordEncoder",
    },
    "teamvla.text_encoders",
    _PAGE,
)
SENSOR_ENCODER_REGISTRY: Registry[type[SensorEncoder]] = Registry(
    "sensor encoder",
    {
        "grid": "teamvla.models.encoders.grid:StateEncoder",
        "imu": "teamvla.models.encoders.imu:IMUEncoder",
        "pointnet": "teamvla.models.encoders.points:PointCloudEncoder",
        "radar": "teamvla.models.encoders.radar:RadarEncoder",
        "vector": "teamvla.models.encoders.vector:VectorEncoder",
    },
    "teamvla.sensor_encoders",
    _PAGE,
)
FUSION_REGISTRY: Registry[type[Fusion]] = Registry(
    "fusion",
    {
        "concat": "teamvla.models.fusion.concat:ConcatFusion",
        "cross_modal": "teamvla.models.fusion.cross_modal:CrossModalFusion",
        "film": "teamvla.models.fusion.film:FilmFusion",
        "hierarchical": "teamvla.models.fusion.hierarchical:HierarchicalFusion",
        "pooled": "teamvla.models.fusion.pooled:PooledFusion",
        "transformer": "teamvla.models.fusion.transformer:TransformerFusion",
    },
    "teamvla.fusions",
    _PAGE,
)
TEMPORAL_REGISTRY: Registry[type[Temporal]] = Registry(
    "temporal part",
    {
        "history": "teamvla.models.temporal.history:History",
        "memory": "teamvla.models.temporal.memory:MemoryBuffer",
    },
    "teamvla.temporal",
    _PAGE,
)
PROJECTOR_REGISTRY: Registry[type[Projector]] = Registry(
    "projector",
    {
        "mlp": "teamvla.models.projectors:MLPProjector",
        "attention_pooling": "teamvla.models.projectors:AttentionPoolingProjector",
        "perceiver": "teamvla.models.projectors:PerceiverProjector",
    },
    "teamvla.projectors",
    _PAGE,
)
