"""From the records of sweeps to tables: ``carft collect`` and ``carft top``. No torch."""
