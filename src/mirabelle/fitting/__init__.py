"""What data say of layers, and solving for weights: Gram matrices, gradients, BatchNorm, least
squares.
"""
