"""Where an exported file runs besides this machine: the Arm build of its runtime under an emulator,
and a phone.
"""
