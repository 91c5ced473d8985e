"""What a network takes to store and to run."""

from sqlib.networks.network import Network
from sqlib.quant.bits import FLOAT


def cost(model: Network) -> dict[str, int]:
    """What a model takes to store and to run, from its layers' shapes and bits.

    `weight_bytes`: weights at their bits, rounded up to bytes a layer, biases, one float32 step a quantised layer (a
    channel, if per channel) and one clip a PACT; `float_weight_bytes`: the same network in float32; `macs`:
    multiply-accumulates an image;
    `bit_operations`: MACs x bits of the weight x bits of the layer's input (8 for pixels, 32 for float; a layer with
    float weights computes in float whatever its input, and counts 32 x 32);
    `peak_activation_bytes`: the largest layer's input and output together.
    """
    weight_bytes = float_bytes = bit_operations = peak = 0
    input_bits, input_bytes = 8, 28 * 28 * model.get_submodule(model.layer_names[0]).in_channels
    for layer in model.layer_names:
        module = model.get_submodule(layer)
        count, biases = module.weight.numel(), module.bias.numel()
        float_bytes += 4 * (count + biases)
        quantised = module.bits != FLOAT
        weight_bytes += -(-count * module.bits // 8) + 4 * biases
        weight_bytes += 4 * quantised * (module.weight.shape[0] if module.per_channel else 1)
        bit_operations += model.macs[layer] * module.bits * (input_bits if quantised else FLOAT)
        activation = getattr(model, f"{layer}_act", None)
        input_bits = activation.bits if activation is not None else FLOAT
        weight_bytes += 4 * (input_bits != FLOAT)
        output_bytes = -(-model.activations[layer] * input_bits // 8)
        peak = max(peak, input_bytes + output_bytes)
        input_bytes = output_bytes
    return {
        "weight_bytes": weight_bytes,
        "float_weight_bytes": float_bytes,
        "macs": sum(model.macs.values()),
        "bit_operations": bit_operations,
        "peak_activation_bytes": peak,
    }
