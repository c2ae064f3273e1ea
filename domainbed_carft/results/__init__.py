"""From the records of sweeps to tables: ``carft collect`` and ``carft top``. No torch.

``settings`` keeps apart what does not belong together, ``selection`` selects as DomainBed does,
``tables`` averages and ``gaps`` says what is missing; ``paired``, ``published`` and ``top`` answer
questions of their own; ``collection`` puts all into a ``document``, which ``formats`` writes.
"""
