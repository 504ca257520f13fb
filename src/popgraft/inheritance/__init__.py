"""What a graft means, once, for the engine and for models that are trained elsewhere.

Arithmetic on named state; it knows neither networks nor models.
"""
