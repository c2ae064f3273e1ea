"""Tables from the records of sweeps: ``carft collect`` and ``carft top``. No torch."""
