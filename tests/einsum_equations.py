"""Every `EinsumDense` equation of keras-hub 0.32 and Keras 3.15, each with small sizes.

No equation in either has an axis that input, kernel and output share (a batch of
kernels). `BATCHED_EQUATIONS` holds such ones, of layers of one's own.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class EquationCase:
    """The arguments of one `keras.layers.EinsumDense` and where it comes from.

    Attributes:
        equation: The einsum equation.
        input_shape: Shape of an input, with its batch axis.
        output_shape: The layer's `output_shape`, without the batch axis.
        bias_axes: The layer's `bias_axes`, `None` for no bias.
        where: The layers that use it.
    """

    equation: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int | None, ...]
    bias_axes: str | None
    where: str


# Written out in keras-hub and in Keras's GroupedQueryAttention.
WRITTEN = [
    EquationCase("bqm,muh->bquh", (2, 3, 8), (None, 4, 5), None, "Llama query"),
    EquationCase("bqm,muh->bquh", (2, 3, 8), (None, 4, 5), "uh", "Qwen query"),
    EquationCase("bkm,mvh->bkvh", (2, 3, 8), (None, 2, 5), None, "Llama key, value"),
    EquationCase("bkm,mvh->bkvh", (2, 3, 8), (None, 2, 5), "vh", "Qwen key, value"),
    EquationCase("bquh,uhm->bqm", (2, 3, 4, 5), (None, 8), None, "Llama output"),
    EquationCase("bquh,uhm->bqm", (2, 3, 4, 5), (None, 8), "m", "GPT-OSS output"),
    EquationCase("btd,ndh->btnh", (2, 3, 8), (None, 4, 5), None, "Gemma query"),
    EquationCase("bsd,kdh->bskh", (2, 3, 8), (None, 1, 5), None, "Gemma key, value"),
    EquationCase("bsd,qdh->bsqh", (2, 3, 8), (None, 4, 5), None, "Gemma 4 image query"),
    EquationCase("btnh,nhd->btd", (2, 3, 4, 5), (None, 8), None, "Gemma output"),
    EquationCase("btnh,nhd->btd", (2, 3, 4, 5), (None, 8), "d", "VideoPrism output"),
    EquationCase("btd,df->btf", (2, 3, 8), (None, 11), None, "Gemma ffw_gating"),
    EquationCase("btd,df->btf", (2, 3, 8), (None, 11), "f", "BLIP-2 projection"),
    EquationCase("btf,fd->btd", (2, 3, 11), (None, 8), None, "Gemma ffw_linear"),
    EquationCase("btd,dnh->btnh", (2, 3, 8), (None, 4, 5), None, "T5Gemma query"),
    EquationCase("btd,dnh->btnh", (2, 3, 8), (None, 4, 5), "nh", "VideoPrism query"),
    EquationCase("bsd,dkh->bskh", (2, 3, 8), (None, 2, 5), None, "T5Gemma key, value"),
    EquationCase("btm,mnh->btnh", (2, 3, 8), (None, 4, 5), "nh", "Bloom query"),
    EquationCase("bsm,mnh->bsnh", (2, 3, 8), (None, 4, 5), "nh", "Bloom key, value"),
    EquationCase("bqm,mnh->bqnh", (2, 3, 8), (None, 4, 5), "nh", "Falcon query"),
    EquationCase("bkm,mnh->bknh", (2, 3, 8), (None, 4, 5), "nh", "Falcon key, value"),
    EquationCase("abc,cde->abde", (2, 3, 8), (None, 4, 5), "de", "DeBERTa, GPT-NeoX"),
    EquationCase("abc,cd->abd", (2, 3, 8), (None, 7), "d", "their output"),
    EquationCase("abc,cdef->abdef", (2, 3, 8), (None, 2, 3, 4), "def", "D-FINE"),
    EquationCase("ibnd,hnd->ibh", (3, 2, 4, 5), (None, 8), None, "XLNet output"),
]

# Computed by `_build_proj_equation` of MultiHeadAttention and the layers made after it
# (BERT, GPT-2, BART, CLIP, ViT, Whisper, Moonshine, XLNet, …), for inputs
# `(batch, sequence, width)` and, in the last two, `(batch, height, width, channels)`.
COMPUTED = [
    EquationCase("abc,cde->abde", (2, 3, 8), (None, 4, 5), None, "MHA without bias"),
    EquationCase("abcd,cde->abe", (2, 3, 4, 5), (None, 8), "e", "MHA output"),
    EquationCase("abcd,cde->abe", (2, 3, 4, 5), (None, 8), None, "Moonshine output"),
    EquationCase("abcd,def->abcef", (2, 3, 2, 8), (None, None, 4, 5), "ef", "2-D MHA"),
    EquationCase("abcde,def->abcf", (2, 3, 2, 4, 5), (None, None, 8), "f", "2-D MHA"),
]

# Forms that Keras allows and keras-hub does not use.
VARIANTS = [
    EquationCase("ab,bc->ac", (2, 8), (5,), "c", "Keras documentation"),
    EquationCase("...x,xy->...y", (2, 3, 8), (5,), "y", "Keras documentation"),
    EquationCase("...x,xy->...y", (2, 3, 4, 8), (5,), None, "rank 4"),
    EquationCase("...d,dnh->...nh", (2, 3, 8), (4, 5), "nh", "ellipsis, two outputs"),
    EquationCase("...d,ndh->...nh", (2, 3, 8), (4, 5), None, "kernel (n, d, h)"),
    EquationCase("...nh,nhd->...d", (2, 3, 4, 5), (8,), "d", "ellipsis, two inputs"),
    EquationCase("ab...,bc->ac...", (2, 8, 3), (5, None), None, "ellipsis last"),
    EquationCase("abc,dc->abd", (2, 3, 8), (None, 5), "d", "kernel (outputs, inputs)"),
    EquationCase("abc,bcd->ad", (2, 3, 8), (5,), "d", "every axis contracted"),
    EquationCase("abc,bd->acd", (2, 8, 3), (None, 5), "d", "axis 1 contracted"),
    EquationCase("abcd,bde->ace", (2, 4, 3, 5), (None, 8), "e", "inputs apart"),
    EquationCase("abc,cd->adb", (2, 3, 8), (5, None), "d", "token axis last"),
    EquationCase("abc,ecd->abde", (2, 3, 8), (None, 4, 5), "de", "outputs apart"),
]

EQUATIONS = WRITTEN + COMPUTED + VARIANTS

# An axis of input, kernel and output at once: one kernel a head, a position, …
BATCHED_EQUATIONS = [
    EquationCase("btnh,nhd->btnd", (2, 3, 4, 5), (None, 4, 8), None, "a kernel a head"),
    EquationCase("btd,tdf->btf", (2, 3, 8), (3, 5), None, "a kernel a position"),
    EquationCase("...nd,ndf->...nf", (2, 3, 4, 8), (4, 5), None, "with an ellipsis"),
]
