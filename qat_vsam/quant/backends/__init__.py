"""Quantized models in the form of other libraries, `torchao` and `brevitas`, and torchao's observers.

Each is a module of its own that is imported by whoever wants it, since it imports its library:

    from qat_vsam.quant.backends.torchao import QatVsamConfig, to_torchao
    from qat_vsam.quant.backends.brevitas import to_brevitas
"""
