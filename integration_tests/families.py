"""Tiny, randomly initialised models of every keras-hub family with a linear layer.

`FAMILIES` maps a name to a model of a few thousand parameters and its inputs.
`WITHOUT_LINEAR` and `CANNOT_RUN` give the reason for each family that is absent.
Together they cover every folder of `keras_hub.src.models`.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import keras
import keras_hub
import numpy as np
from keras_hub import layers, models

BATCH = 2
LENGTH = 6
VOCABULARY = 23

# Sizes that many constructors share. No width is a multiple of every other one, so
# that kernels with more rows than columns, fewer and as many all occur.
BERT = dict(
    vocabulary_size=VOCABULARY,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    intermediate_dim=24,
)
LLAMA = dict(
    vocabulary_size=VOCABULARY,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=16,
    intermediate_dim=24,
)
GEMMA = dict(LLAMA, num_layers=2, head_dim=4)
VISION = dict(num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=24)
VIT = dict(
    image_shape=(16, 16, 3), patch_size=(8, 8), num_layers=2, num_heads=2, hidden_dim=16
)


@dataclasses.dataclass(frozen=True)
class Family:
    """One tiny model.

    Attributes:
        folder: The folder of `keras_hub.src.models` that it stands for.
        make: Builds the model.
        make_inputs: Draws one batch of inputs (arrays) from a NumPy generator.
        own_updates: Other weights that change in training:
            {end of the weight's path: reason}.
    """

    folder: str
    make: Callable[[], keras.Model]
    make_inputs: Callable[[np.random.Generator], object]
    own_updates: dict[str, str] = dataclasses.field(default_factory=dict)

    def build(self, seed=0):
        """Build the model with reproducible weights, none of them constant."""
        keras.utils.set_random_seed(seed)
        model = self.make()
        _randomize_constants(model, np.random.default_rng(seed))
        return model

    def inputs(self, seed=0):
        """Return one batch of inputs, the same for the same seed."""
        return self.make_inputs(np.random.default_rng(seed))


def _randomize_constants(model, rng):
    """Add noise to weights that start as a constant: a zero hides wrong gradients."""
    for weight in model.trainable_weights:
        value = keras.ops.convert_to_numpy(weight)
        if value.size and np.ptp(value) == 0:
            weight.assign(value + 0.1 * rng.standard_normal(value.shape))


FAMILIES: dict[str, Family] = {}


def family(make_inputs, *, folder=None, **exceptions):
    """Register the decorated function, named after its folder, as a family."""

    def register(make):
        name = make.__name__
        FAMILIES[name] = Family(folder or name, make, make_inputs, **exceptions)
        return make

    return register


# Inputs


def token_ids(rng, length=LENGTH):
    """Return token ids without the padding id 0."""
    return rng.integers(1, VOCABULARY, (BATCH, length)).astype("int32")


def padding_mask(length=LENGTH):
    """Return a mask whose second row ends in padding."""
    mask = np.ones((BATCH, length), "int32")
    mask[1, -2:] = 0
    return mask


def text(rng, length=LENGTH):
    """Return token ids and their mask."""
    return {"token_ids": token_ids(rng, length), "padding_mask": padding_mask(length)}


def nothing(rng):
    """Return no inputs, to add some to."""
    return {}


def bare_text(rng):
    """Return token ids only."""
    return {"token_ids": token_ids(rng)}


def segmented_text(rng):
    """Return token ids of two segments and their mask."""
    segment_ids = rng.integers(0, 2, (BATCH, LENGTH)).astype("int32")
    return {**text(rng), "segment_ids": segment_ids}


def unmasked_segmented_text(rng):
    """Return token ids of two segments."""
    inputs = segmented_text(rng)
    del inputs["padding_mask"]
    return inputs


def text_pair(rng):
    """Return encoder and decoder token ids and their masks."""
    return {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in text(rng).items()
    }


def pixels(*shape):
    """Return a function that draws one batch of images of `shape`."""
    return lambda rng: rng.random((BATCH, *shape), "float32")


def images_with(key, make_inputs, *shape):
    """Return a function that adds images of `shape` under `key` to other inputs."""
    return lambda rng: {**make_inputs(rng), key: pixels(*shape)(rng)}


def without_own_training(model):
    """Return the same graph without the model's own `fit`, loss and metrics."""
    return keras.Model(model.input, model.output)


# Text encoders


@family(segmented_text)
def albert():
    return models.AlbertBackbone(**BERT, embedding_dim=8)


@family(segmented_text)
def bert():
    return models.BertBackbone(**BERT)


@family(text)
def deberta_v3():
    return models.DebertaV3Backbone(**BERT, bucket_size=4)


@family(text)
def distil_bert():
    return models.DistilBertBackbone(**BERT)


@family(segmented_text)
def electra():
    sizes = {key: BERT[key] for key in BERT if key != "vocabulary_size"}
    return models.ElectraBackbone(vocab_size=VOCABULARY, embedding_dim=8, **sizes)


@family(bare_text)
def esm():
    return models.ESMBackbone(**BERT)


@family(unmasked_segmented_text)
def f_net():
    sizes = {key: BERT[key] for key in BERT if key != "num_heads"}
    return models.FNetBackbone(**sizes)


@family(text)
def roberta():
    return models.RobertaBackbone(**BERT)


@family(unmasked_segmented_text)
def roformer_v2():
    return models.RoformerV2Backbone(**BERT, head_size=8)


@family(text)
def xlm_roberta():
    return models.XLMRobertaBackbone(**BERT)


@family(segmented_text)
def xlnet():
    return models.XLNetBackbone(**BERT)


# Text decoders


@family(text)
def bloom():
    return models.BloomBackbone(**BERT)


@family(text)
def falcon():
    sizes = {key: BERT[key] for key in BERT if key != "num_heads"}
    return models.FalconBackbone(**sizes, num_attention_heads=2)


@family(text)
def gemma():
    return models.GemmaBackbone(**GEMMA)


@family(text)
def gpt2():
    return models.GPT2Backbone(**BERT)


@family(text)
def gpt_neo_x():
    return models.GPTNeoXBackbone(**BERT)


@family(text)
def gpt_oss():
    return models.GptOssBackbone(**LLAMA, num_experts=3)


@family(text)
def llama():
    return models.LlamaBackbone(**LLAMA)


@family(text)
def llama3():
    return models.Llama3Backbone(**LLAMA)


@family(text)
def mistral():
    return models.MistralBackbone(**LLAMA)


@family(text)
def mixtral():
    return models.MixtralBackbone(**LLAMA, num_experts=3)


@family(text)
def opt():
    return models.OPTBackbone(**BERT)


@family(text)
def phi3():
    return models.Phi3Backbone(**LLAMA)


@family(text)
def qwen():
    return models.QwenBackbone(**LLAMA)


@family(text)
def qwen_moe():
    return models.QwenMoeBackbone(
        **LLAMA,
        moe_intermediate_dim=12,
        shared_expert_intermediate_dim=20,
        num_experts=3,
        top_k=2,
    )


@family(text)
def qwen3():
    return models.Qwen3Backbone(**LLAMA, head_dim=4)


@family(text)
def qwen3_moe():
    return models.Qwen3MoeBackbone(
        **LLAMA, head_dim=4, moe_intermediate_dim=12, num_experts=3, top_k=2
    )


QWEN3_5 = dict(
    vocabulary_size=VOCABULARY,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    hidden_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=4,
    linear_value_head_dim=4,
)


# Without the image encoder: it reads `image_grid_thw` as Python numbers, so that `fit`
# can neither trace nor build the model, on any backend.
@family(text)
def qwen3_5():
    return models.Qwen3_5Backbone(
        **QWEN3_5,
        layer_types=["linear_attention", "full_attention"],
        intermediate_dim=24,
    )


@family(text)
def qwen3_5_moe():
    return models.Qwen3_5MoeBackbone(
        **QWEN3_5,
        # Linear attention, slow to trace, has its turn in `qwen3_5`.
        layer_types=["full_attention"] * 2,
        moe_intermediate_dim=12,
        shared_expert_intermediate_size=20,
        num_experts=3,
        top_k=2,
    )


def _chunked_text(rng):
    return text(rng, length=16)


@family(_chunked_text)
def rwkv7():
    return models.RWKV7Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        hidden_size=16,
        head_size=8,
        intermediate_dim=24,
        gate_lora=4,
        mv_lora=4,
        aaa_lora=4,
        decay_lora=4,
    )


@family(text)
def smollm3():
    return models.SmolLM3Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        attention_bias=False,
        attention_dropout=0.0,
        rope_layer_enabled_list=[True, False],
        layer_types=["full_attention", "full_attention"],
        mlp_bias=False,
        layer_norm_epsilon=1e-6,
        max_position_embeddings=LENGTH,
        rope_theta=10000.0,
        partial_rotary_factor=1.0,
    )


# Text encoder-decoders


@family(text_pair)
def bart():
    return models.BartBackbone(**BERT)


@family(text_pair)
def edrec():
    return models.EdRecBackbone(
        vocab_size=VOCABULARY,
        num_layers_enc=2,
        num_layers_dec=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
    )


@family(text_pair)
def t5():
    return models.T5Backbone(**BERT)


def _t5gemma_sizes():
    sizes = dict(
        hidden_dim=16,
        intermediate_dim=24,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    return {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in sizes.items()
    }


T5GEMMA = dict(
    _t5gemma_sizes(),
    vocabulary_size=VOCABULARY,
    sliding_window=4,
    cross_attention_hidden_size=16,
)


@family(text_pair)
def t5gemma():
    return models.T5GemmaBackbone(**T5GEMMA)


# Vision


@family(pixels(16, 16, 3))
def deit():
    return models.DeiTBackbone(**VIT, intermediate_dim=24)


@family(images_with("images", nothing, 16, 16, 3))
def dinov2():
    return models.DINOV2Backbone(
        **VISION,
        patch_size=8,
        image_shape=(16, 16, 3),
        position_embedding_shape=(16, 16, 3),
    )


@family(images_with("pixel_values", nothing, 16, 16, 3))
def dinov3():
    return models.DINOV3Backbone(**VISION, patch_size=8, image_shape=(16, 16, 3))


@family(pixels(32, 32, 3))
def depth_anything():
    image_encoder = models.DINOV2Backbone(
        **VISION,
        patch_size=8,
        image_shape=(32, 32, 3),
        position_embedding_shape=(32, 32, 3),
        apply_layernorm=True,
    )
    return models.DepthAnythingBackbone(
        image_encoder=image_encoder,
        reassemble_factors=[2, 1],
        neck_hidden_dims=[8, 8],
        fusion_hidden_dim=8,
        head_hidden_dim=8,
        head_in_index=-1,
        feature_keys=["stage1", "stage2"],
    )


def _mit():
    return models.MiTBackbone(
        image_shape=(32, 32, 3),
        num_layers=2,
        hidden_dims=[8, 16],
        layerwise_depths=[1, 1],
        layerwise_num_heads=[2, 2],
        layerwise_sr_ratios=[2, 1],
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        max_drop_path_rate=0.1,
    )


@family(pixels(32, 32, 3))
def mit():
    return _mit()


@family(pixels(32, 32, 3))
def segformer():
    return models.SegFormerBackbone(image_encoder=_mit(), projection_filters=8)


@family(pixels(32, 32, 3))
def swin_transformer():
    return models.SwinTransformerBackbone(
        image_shape=(32, 32, 3),
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        patch_size=4,
    )


@family(pixels(16, 16, 3))
def vit():
    return models.ViTBackbone(**VIT, mlp_dim=24)


def _vit_det(image_size, num_output_channels):
    return models.ViTDetBackbone(
        hidden_size=16,
        num_layers=2,
        intermediate_dim=24,
        num_heads=2,
        global_attention_layer_indices=[1],
        patch_size=16,
        num_output_channels=num_output_channels,
        window_size=2,
        image_shape=(image_size, image_size, 3),
    )


@family(pixels(64, 64, 3))
def vit_det():
    return _vit_det(64, 4)


def _d_fine_backbone():
    return models.HGNetV2Backbone(
        stem_channels=[3, 4, 4],
        stackwise_stage_filters=[
            [4, 4, 8, 1, 1, 3],
            [8, 4, 8, 1, 1, 3],
            [8, 4, 8, 1, 1, 3],
            [8, 4, 16, 1, 1, 3],
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 16],
        embedding_size=4,
        use_learnable_affine_block=True,
        hidden_act="relu",
        image_shape=(None, None, 3),
        out_features=["stage3", "stage4"],
    )


@family(pixels(64, 64, 3))
def d_fine():
    return models.DFineBackbone(
        backbone=_d_fine_backbone(),
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=5,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=7,
        anchor_image_size=(64, 64),
        feat_strides=[16, 32],
        num_feature_levels=2,
        encoder_in_channels=[8, 16],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=24,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=2,
        out_features=["stage3", "stage4"],
        seed=0,
    )


def _sam_inputs(rng):
    return {
        "images": pixels(64, 64, 3)(rng),
        "points": 64 * rng.random((BATCH, 1, 2), "float32"),
        "labels": np.ones((BATCH, 1), "float32"),
        "boxes": 64 * rng.random((BATCH, 1, 2, 2), "float32"),
        "masks": np.zeros((BATCH, 0, 64, 64, 1), "float32"),
    }


@family(_sam_inputs)
def sam():
    prompt_encoder = layers.SAMPromptEncoder(
        hidden_size=16,
        image_embedding_size=(4, 4),
        input_image_size=(64, 64),
        mask_in_channels=4,
    )
    mask_decoder = layers.SAMMaskDecoder(
        num_layers=2,
        hidden_size=16,
        intermediate_dim=24,
        num_heads=2,
        embedding_dim=16,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=8,
    )
    backbone = models.SAMBackbone(
        image_encoder=_vit_det(64, 16),
        prompt_encoder=prompt_encoder,
        mask_decoder=mask_decoder,
    )
    # The backbone holds the mask decoder and leaves calling it to the task.
    return without_own_training(models.SAMImageSegmenter(backbone=backbone))


# Text and images


def _clip_like(prefix):
    vision_encoder = getattr(models, f"{prefix}VisionEncoder")(
        **VISION, patch_size=8, image_shape=(16, 16, 3)
    )
    text_encoder = getattr(models, f"{prefix}TextEncoder")(
        **BERT, embedding_dim=16, max_sequence_length=LENGTH
    )
    return {"vision_encoder": vision_encoder, "text_encoder": text_encoder}


@family(images_with("images", bare_text, 16, 16, 3))
def clip():
    return models.CLIPBackbone(**_clip_like("CLIP"), projection_dim=8)


# The text is pooled at the end token, 2. Without one that is the first position, which
# attends to itself alone, whatever query and key are.
def _ended_text(rng):
    inputs = bare_text(rng)
    inputs["token_ids"][:, -1] = 2
    return inputs


@family(images_with("images", _ended_text, 16, 16, 3))
def metaclip_2():
    return models.MetaCLIP2Backbone(**_clip_like("MetaCLIP2"), projection_dim=8)


@family(images_with("images", bare_text, 16, 16, 3))
def siglip():
    return models.SigLIPBackbone(**_clip_like("SigLIP"))


def _blip2(language_model):
    vision_encoder = models.BLIP2VisionEncoder(
        image_size=16,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=12,
        intermediate_dim=24,
        use_patch_bias=True,
        use_class_token=True,
        use_mha_bias=True,
        use_mlp_bias=True,
        dropout_rate=0.0,
        layer_norm_epsilon=1e-6,
        initializer_range=0.02,
    )
    qformer = models.BLIP2QFormer(
        num_query_tokens=3,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        vision_dim=12,
        cross_attention_frequency=2,
        dropout=0.0,
        layer_norm_epsilon=1e-6,
    )
    return models.BLIP2Backbone(
        vision_encoder=vision_encoder, qformer=qformer, language_model=language_model
    )


@family(images_with("images", text, 16, 16, 3))
def blip2():
    opt_model = models.BLIP2CustomOPT(
        **BERT,
        num_query_tokens=3,
        qformer_hidden_dim=8,
        max_sequence_length=LENGTH + 3,
        dropout=0.0,
    )
    return _blip2(opt_model)


@family(images_with("images", text_pair, 16, 16, 3), folder="blip2")
def blip2_flan_t5():
    t5_model = models.BLIP2FlanT5(**BERT, num_query_tokens=3, qformer_hidden_dim=8)
    # The backbone holds `lm_head` and leaves calling it to the task.
    task = models.BLIP2Seq2SeqLM(backbone=_blip2(t5_model), preprocessor=None)
    return without_own_training(task)


def _gemma3_vision_encoder(output_dim):
    return models.Gemma3VisionEncoder(
        **VISION, image_size=16, patch_size=4, pool_size=2, output_dim=output_dim
    )


@family(text)
def gemma3():
    return models.Gemma3Backbone(**GEMMA, image_size=16)


def _gemma3_inputs(rng):
    vision_indices = np.tile(np.arange(1, 5, dtype="int32"), (BATCH, 1))
    vision_mask = np.zeros((BATCH, LENGTH), "int32")
    vision_mask[:, 1:5] = 1
    return {
        **text(rng),
        "images": pixels(1, 16, 16, 3)(rng),
        "vision_indices": vision_indices,
        "vision_mask": vision_mask,
    }


@family(_gemma3_inputs, folder="gemma3")
def gemma3_vision():
    return models.Gemma3Backbone(
        **GEMMA,
        image_size=16,
        vision_encoder=_gemma3_vision_encoder(16),
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        use_sliding_window_attention=True,
        sliding_window_size=4,
    )


def _t5gemma2_inputs(rng):
    return {
        **text_pair(rng),
        "images": pixels(1, 16, 16, 3)(rng),
        "vision_indices": np.tile(np.arange(1, 5, dtype="int32"), (BATCH, 1)),
    }


@family(_t5gemma2_inputs)
def t5gemma2():
    return models.T5Gemma2Backbone(**T5GEMMA, vision_encoder=_gemma3_vision_encoder(16))


def _pali_gemma_inputs(rng):
    images = pixels(16, 16, 3)(rng)
    return {**text(rng), "images": images, "response_mask": padding_mask()}


@family(_pali_gemma_inputs)
def pali_gemma():
    return models.PaliGemmaBackbone(
        **GEMMA,
        image_size=16,
        vit_patch_size=8,
        vit_num_heads=2,
        vit_hidden_dim=16,
        vit_intermediate_dim=24,
        vit_num_layers=2,
    )


@family(images_with("images", text, 16, 16, 3))
def parseq():
    image_encoder = models.ViTBackbone(**VIT, mlp_dim=24, use_class_token=False)
    return models.PARSeqBackbone(
        image_encoder=image_encoder,
        vocabulary_size=VOCABULARY,
        max_label_length=LENGTH,
        decoder_hidden_dim=16,
        num_decoder_layers=2,
        num_decoder_heads=2,
        decoder_mlp_dim=24,
    )


def _sam3_inputs(rng):
    return {
        **text(rng),
        "pixel_values": pixels(56, 56, 3)(rng),
        "boxes": rng.uniform(0.2, 0.5, (BATCH, 1, 5)).astype("float32"),
        "box_labels": np.ones((BATCH, 1), "int32"),
    }


@family(_sam3_inputs)
def sam3():
    single = dict(VISION, num_layers=1)
    vision_encoder = layers.SAM3VisionEncoder(
        **VISION,
        image_shape=(56, 56, 3),
        patch_size=14,
        fpn_hidden_dim=16,
        fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
        pretrain_image_shape=(28, 28, 3),
        window_size=2,
        global_attn_indexes=[1],
    )
    return models.SAM3PromptableConceptBackbone(
        vision_encoder=vision_encoder,
        text_encoder=layers.SAM3TextEncoder(**BERT, embedding_dim=16),
        geometry_encoder=layers.SAM3GeometryEncoder(**single, roi_size=3),
        detr_encoder=layers.SAM3DetrEncoder(**single),
        detr_decoder=layers.SAM3DetrDecoder(
            **single, image_shape=(56, 56, 3), patch_size=14, num_queries=5
        ),
        mask_decoder=layers.SAM3MaskDecoder(
            num_upsampling_stages=3, hidden_dim=16, num_heads=2
        ),
    )


def _video_inputs(rng):
    return {**text(rng), "pixel_values": pixels(2, 16, 16, 3)(rng)}


@family(_video_inputs)
def video_prism():
    return models.VideoPrismBackbone(
        num_frames=2,
        patch_size=8,
        hidden_dim=16,
        intermediate_dim=24,
        num_heads=2,
        num_spatial_layers=1,
        num_temporal_layers=1,
        num_auxiliary_layers=1,
        vocabulary_size=VOCABULARY,
        num_text_layers=1,
        image_shape=(16, 16, 3),
    )


# Image generation


def _flux_inputs(rng):
    draw = lambda *shape: rng.random((BATCH, *shape), "float32")  # noqa: E731
    return {
        "image": draw(5, 8),
        "image_ids": draw(5, 3),
        "text": draw(4, 12),
        "text_ids": draw(4, 3),
        "y": draw(10),
        "timesteps": draw(),
        "guidance": draw(),
    }


@family(_flux_inputs)
def flux():
    return models.FluxBackbone(
        input_channels=8,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[4, 6, 6],
        theta=10_000,
        use_bias=True,
        guidance_embed=True,
        image_shape=(5, 8),
        text_shape=(4, 12),
        image_ids_shape=(5, 3),
        text_ids_shape=(4, 3),
        y_shape=(10,),
    )


def _stable_diffusion_inputs(rng):
    token_keys = [
        f"clip_{size}_{sign}token_ids" for size in "lg" for sign in ("", "negative_")
    ]
    return {
        # Four patches of latents: attention over a single one is constant.
        "images": pixels(32, 32, 3)(rng),
        "latents": pixels(4, 4, 16)(rng),
        **{key: token_ids(rng) for key in token_keys},
        "num_steps": np.ones((BATCH,), "int32"),
        "guidance_scale": np.full((BATCH,), 2.0, "float32"),
    }


def _clip_text_encoder(name, hidden_dim):
    return models.CLIPTextEncoder(
        **dict(BERT, hidden_dim=hidden_dim),
        embedding_dim=hidden_dim,
        intermediate_output_index=-2,
        max_sequence_length=LENGTH,
        name=name,
    )


@family(_stable_diffusion_inputs)
def stable_diffusion_3():
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    vae = VAEBackbone([32] * 4, [1] * 4, [32] * 4, [1] * 4, sampler_method="mode")
    model = models.StableDiffusion3Backbone(
        mmdit_patch_size=2,
        mmdit_hidden_dim=16,
        mmdit_num_layers=2,
        mmdit_num_heads=2,
        mmdit_position_size=4,
        mmdit_qk_norm="rms_norm",
        mmdit_dual_attention_indices=(0,),
        vae=vae,
        clip_l=_clip_text_encoder("clip_l", 16),
        clip_g=_clip_text_encoder("clip_g", 24),
        image_shape=(32, 32, 3),
    )
    model.configure_scheduler(4)
    return model


_CODEBOOK = "The codebook is a moving average of what it encodes."


@family(
    pixels(10),
    own_updates=dict.fromkeys(
        ("/embeddings", "/ema_cluster_size", "/ema_w"), _CODEBOOK
    ),
)
def rqvae():
    from keras_hub.src.models.rqvae.rqvae_backbone import RQVAEBackbone

    model = RQVAEBackbone(
        input_dim=10,
        encoder_layer_dims=[16, 12],
        output_dim=8,
        decoder_layer_dims=[12, 16],
        num_embeddings=8,
        num_quantizers=2,
    )
    # Its own loss is an array of shape (1,), which JAX cannot derive.
    return without_own_training(model)


# Audio


def _moonshine_inputs(rng):
    return {
        "encoder_input_values": rng.standard_normal((BATCH, 2000, 1)).astype("float32"),
        "encoder_padding_mask": np.ones((BATCH, 2000), bool),
        "decoder_token_ids": token_ids(rng),
        "decoder_padding_mask": padding_mask().astype(bool),
    }


@family(_moonshine_inputs)
def moonshine():
    return models.MoonshineBackbone(
        vocabulary_size=VOCABULARY,
        filter_dim=16,
        encoder_num_layers=2,
        decoder_num_layers=2,
        hidden_dim=16,
        intermediate_dim=24,
        encoder_num_heads=2,
        decoder_num_heads=2,
        feedforward_expansion_factor=2,
    )


def _whisper_inputs(rng):
    return {
        "encoder_features": rng.standard_normal((BATCH, 12, 8)).astype("float32"),
        "decoder_token_ids": token_ids(rng),
        "decoder_padding_mask": padding_mask(),
    }


@family(_whisper_inputs)
def whisper():
    return models.WhisperBackbone(
        **BERT,
        num_mels=8,
        max_encoder_sequence_length=12,
        max_decoder_sequence_length=LENGTH,
    )


# Text, images and audio


IMAGE_TOKEN, AUDIO_TOKEN = 98, 99


def _gemma3n_inputs(rng):
    ids = token_ids(rng)
    ids[:, 1:3] = IMAGE_TOKEN
    ids[:, 3:5] = AUDIO_TOKEN
    return {
        "token_ids": ids,
        "padding_mask": padding_mask().astype(bool),
        "images": pixels(1, 32, 32, 3)(rng),
        "input_features": pixels(1, 16, 8)(rng),
        "input_features_mask": np.zeros((BATCH, 1, 16), bool),
    }


def _gemma3n_vision_config():
    from keras_hub.src.models.mobilenetv5.mobilenetv5_builder import (
        convert_arch_def_to_stackwise,
    )

    stackwise = convert_arch_def_to_stackwise([["er_r1_k3_s1_e1_c16"]])
    encoder = models.MobileNetV5Backbone(
        **stackwise, num_features=4, image_shape=(32, 32, 3), use_msfa=False
    )
    return encoder.get_config()


def _gemma3n_audio_config():
    return dict(
        hidden_size=8,
        input_feat_size=8,
        sscp_conv_channel_size=[4, 4],
        sscp_conv_kernel_size=[(3, 3), (3, 3)],
        sscp_conv_stride_size=[(2, 2), (2, 2)],
        sscp_conv_group_norm_eps=1e-5,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        gradient_clipping=1e10,
        residual_weight=0.5,
        num_attention_heads=2,
        attention_chunk_size=4,
        num_attention_context_right=5,
        num_attention_context_left=5,
        attention_logit_cap=50.0,
        conv_kernel_size=5,
        reduction_factor=1,
    )


@family(_gemma3n_inputs)
def gemma3n():
    return models.Gemma3nBackbone(
        text_vocab_size=400,
        text_hidden_size=16,
        num_hidden_layers=2,
        pad_token_id=0,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=[24, 24],
        hidden_activation="gelu_approximate",
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=4,
        rope_theta=10000.0,
        max_position_embeddings=16,
        vocab_size_per_layer_input=400,
        hidden_size_per_layer_input=4,
        altup_num_inputs=2,
        laurel_rank=4,
        vision_encoder_config=_gemma3n_vision_config(),
        vision_hidden_size=16,
        audio_encoder_config=_gemma3n_audio_config(),
        audio_hidden_size=8,
        image_token_id=IMAGE_TOKEN,
        audio_token_id=AUDIO_TOKEN,
    )


GEMMA4 = dict(GEMMA, image_size=16, sliding_window_size=4, sliding_window_pattern=2)
GEMMA4_LENGTH = 12


def _gemma4_text(rng):
    positions = np.tile(np.arange(GEMMA4_LENGTH, dtype="int32"), (BATCH, 1))
    return {**text(rng, GEMMA4_LENGTH), "position_ids": positions}


def _gemma4_inputs(rng):
    mask = np.zeros((BATCH, GEMMA4_LENGTH), "int32")
    vision_mask, audio_mask = mask.copy(), mask.copy()
    vision_mask[:, 1:5] = 1
    audio_mask[:, 6:10] = 1
    rows, columns = np.divmod(np.arange(16, dtype="int32"), 4)
    grid = np.stack([columns, rows], axis=-1)
    return {
        **_gemma4_text(rng),
        "pixel_values": pixels(1, 16, 48)(rng),
        "pixel_position_ids": np.tile(grid, (BATCH, 1, 1, 1)),
        "vision_mask": vision_mask,
        "vision_indices": np.tile(np.arange(1, 5, dtype="int32"), (BATCH, 1)),
        "audio_mel": pixels(1, 16, 8)(rng),
        "audio_mel_mask": np.ones((BATCH, 1, 16), "int32"),
        "audio_mask": audio_mask,
        "audio_indices": np.tile(np.arange(6, 10, dtype="int32"), (BATCH, 1)),
    }


@family(_gemma4_inputs)
def gemma4():
    vision_encoder = models.Gemma4VisionEncoder(
        **VISION,
        image_size=16,
        patch_size=4,
        pool_size=2,
        head_dim=8,
        num_key_value_heads=2,
        output_dim=16,
    )
    audio_encoder = models.Gemma4AudioEncoder(
        input_feat_size=8,
        hidden_size=8,
        num_heads=2,
        num_layers=1,
        chunk_size=4,
        context_left=5,
        sscp_conv_channels=(4, 2),
        output_proj_dims=12,
        output_dim=16,
    )
    return models.Gemma4Backbone(
        **GEMMA4,
        vision_encoder=vision_encoder,
        audio_encoder=audio_encoder,
        num_audio_tokens_per_clip=4,
        hidden_size_per_layer_input=4,
    )


@family(_gemma4_text, folder="gemma4")
def gemma4_moe():
    return models.Gemma4Backbone(
        **GEMMA4,
        enable_moe_block=True,
        num_experts=3,
        expert_intermediate_dim=12,
        num_experts_per_token=2,
    )


_CONVOLUTIONS = "Convolutions, normalisation and pooling only."

WITHOUT_LINEAR = {
    "basnet": _CONVOLUTIONS,
    "cspnet": _CONVOLUTIONS,
    "deeplab_v3": _CONVOLUTIONS,
    "densenet": _CONVOLUTIONS,
    "efficientnet": "Convolutions only; squeeze-and-excite is made of Conv2D.",
    "hgnetv2": "Convolutions only; the Dense belongs to the classifier.",
    "mobilenet": "Convolutions only; the Dense belongs to the classifier.",
    "mobilenetv5": (
        "Convolutions only, attention too; the Dense of CondConvResidual needs "
        "`num_experts`, which the backbone's constructor cannot pass on."
    ),
    "resnet": _CONVOLUTIONS,
    "retinanet": "A ResNet and a feature pyramid of convolutions.",
    "vae": "Convolutions only; the attention's projections are Conv2D.",
    "vgg": "Convolutions only; the Dense belongs to the classifier.",
    "xception": _CONVOLUTIONS,
}

# {(name, backend): reason}
CANNOT_RUN = {
    ("sam3", "torch"): "No module named 'torchvision', which its `roi_align` imports.",
}


def names():
    """Return the names of the families that run on the current backend."""
    backend = keras.backend.backend()
    return [name for name in FAMILIES if (name, backend) not in CANNOT_RUN]


def folders():
    """Return every folder of `keras_hub.src.models`."""
    root = pathlib.Path(keras_hub.src.models.__path__[0])
    return sorted({module.parent.name for module in root.glob("*/*.py")})
