"""The names of parameters in single-file checkpoints, derived from the networks.

latent-diffusion (Rombach et al. 2022) has the U-Net's layers in three lists, where diffusers has blocks of levels:

    input_blocks.N.M     N counts the entries of the stack hs, through all levels: conv_in, each residual block with its
                         attention, each downsampling; M counts the layers of an entry
    middle_block.M       residual block, attention, residual block
    output_blocks.N.M    N counts the entries that are popped; M: residual block, attention, upsampling, as there are

Its autoencoder counts the levels of encoder and decoder from full resolution on. The text encoder of 1.x has
transformers' own names, that of 2.x OpenCLIP's, with the projections of queries, keys and values in one array.
"""

from collections.abc import Iterator, Mapping, Sequence

from minidiff.engine.nn import Module
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.vae import VAE

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."

# Names of layers -> those in the file, by the attribute that holds the layers around them.
IN_UNET = {
    "resnets": {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}  # fmt: skip
IN_AUTOENCODER = {
    "resnets": {"conv_shortcut": "nin_shortcut"},
    "attentions": {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
}
IN_OPEN_CLIP = {
    "layers": {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        **{f"self_attn.{x}_proj.{kind}": f"attn.in_proj_{kind}" for x in "qkv" for kind in ("weight", "bias")},
        "self_attn.out_proj": "attn.out_proj",
    },
}  # fmt: skip
Network = TextUNet | VAE | TextEncoder
Places = dict[str, tuple[str, ...]]  # key in the file -> the parameters that its array holds, joined along axis 0


def places(network: Network) -> Places:
    """Where the parameters of a pipeline's U-Net, autoencoder or text encoder are in the file.

    The text encoder has OpenCLIP's names if its activation is "gelu", as in Stable Diffusion 2.x.
    """
    if isinstance(network, TextUNet):
        return _unet(network)
    return _vae(network) if isinstance(network, VAE) else _text_encoder(network)


def _unet(unet: TextUNet) -> Places:
    entries = [["conv_in"]]  # of input_blocks
    for i, down in enumerate(unet.down_blocks):
        entries += _entries(f"down_blocks.{i}", len(down.resnets), bool(down.attentions))
        entries += [[f"down_blocks.{i}.downsamplers.0"] for _ in down.downsamplers]
    popped: list[list[str]] = []  # of output_blocks
    for i, up in enumerate(unet.up_blocks):
        popped += _entries(f"up_blocks.{i}", len(up.resnets), bool(up.attentions))
        popped[-1] += [f"up_blocks.{i}.upsamplers.0" for _ in up.upsamplers]
    middle = ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]
    layers = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        **_counted("input_blocks", entries),
        **{layer: f"middle_block.{m}" for m, layer in enumerate(middle)},
        **_counted("output_blocks", popped),
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    return {UNET + key: names for key, names in _places(unet, layers, IN_UNET).items()}


def _vae(vae: VAE) -> Places:
    levels = len(vae.config.block_out_channels)
    layers = {}
    for part in ("encoder", "decoder"):
        layers |= {f"{part}.mid_block.resnets.{i}": f"{part}.mid.block_{i + 1}" for i in range(2)}
        layers |= {f"{part}.mid_block.attentions.0": f"{part}.mid.attn_1", f"{part}.conv_norm_out": f"{part}.norm_out"}
    for i, down in enumerate(vae.encoder.down_blocks):
        layers |= _level(f"encoder.down_blocks.{i}", f"encoder.down.{i}", len(down.resnets))
    for i, up in enumerate(vae.decoder.up_blocks):
        layers |= _level(f"decoder.up_blocks.{i}", f"decoder.up.{levels - 1 - i}", len(up.resnets))
    return {AUTOENCODER + key: names for key, names in _places(vae, layers, IN_AUTOENCODER).items()}


def _text_encoder(encoder: TextEncoder) -> Places:
    if encoder.config.hidden_act != "gelu":
        return {CLIP + name: (name,) for name, _ in encoder.named_parameters()}
    layers = {
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm": "ln_final",
    }
    layers |= {f"encoder.layers.{i}": f"transformer.resblocks.{i}" for i in range(encoder.config.num_hidden_layers)}
    places = _places(encoder, layers, IN_OPEN_CLIP)
    return {OPEN_CLIP + key: tuple(sorted(names, key=_projection)) for key, names in places.items()}


def _projection(name: str) -> int:
    """The place of a parameter among those of one array, which are of q_proj, k_proj and v_proj."""
    return "qkv".find(name.split(".")[-2][0])


def shape_in_file(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array in the file: of the autoencoder's attention, 1x1 convolutions in place of linear layers."""
    return (*shape, 1, 1) if key.startswith(AUTOENCODER) and ".attn_1." in key and len(shape) == 2 else shape


def _entries(block: str, n: int, attention: bool) -> list[list[str]]:
    """The entries of a level: each a residual block, and its attention if there is one."""
    return [[f"{block}.resnets.{i}"] + [f"{block}.attentions.{i}"] * attention for i in range(n)]


def _counted(name: str, entries: Sequence[Sequence[str]]) -> dict[str, str]:
    """Layer -> its name in the file, NAME.N.M, for the entries of a list."""
    return {layer: f"{name}.{n}.{m}" for n, entry in enumerate(entries) for m, layer in enumerate(entry)}


def _level(block: str, level: str, n: int) -> dict[str, str]:
    """The layers of a level of the autoencoder."""
    resnets = {f"{block}.resnets.{i}": f"{level}.block.{i}" for i in range(n)}
    return resnets | {f"{block}.downsamplers.0": f"{level}.downsample", f"{block}.upsamplers.0": f"{level}.upsample"}


def _places(network: Module, layers: Mapping[str, str], inner: Mapping[str, Mapping[str, str]]) -> Places:
    """Where the parameters are in the file: their layers' names by `layers`, and within these by `inner`."""
    places: Places = {}
    for name, _ in network.named_parameters():
        key = _name_in_file(name, layers, inner)
        places[key] = (*places.get(key, ()), name)
    return places


def _name_in_file(name: str, layers: Mapping[str, str], inner: Mapping[str, Mapping[str, str]]) -> str:
    for layer in _prefixes(name):
        if layer in layers:
            names = inner.get(layer.split(".")[-2] if "." in layer else "", {})
            return layers[layer] + _renamed(name[len(layer) :], names)
    return name


def _renamed(rest: str, names: Mapping[str, str]) -> str:
    """Such as .norm1.weight -> .in_layers.0.weight, by the longest beginning that has another name."""
    prefix = next((prefix for prefix in _prefixes(rest[1:]) if prefix in names), "")
    return f".{names[prefix]}{rest[1 + len(prefix) :]}" if prefix else rest


def _prefixes(name: str) -> Iterator[str]:
    """The name a.b.c, then its beginnings a.b and a."""
    while name:
        yield name
        name = name.rpartition(".")[0]
