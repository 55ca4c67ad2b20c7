"""What the authors' code does, written anew from its description: plain loops in its own order. No line of it is copied.

Whatever the official procedure draws by chance comes from outside, so that both sides see the same images and noise.
"""
