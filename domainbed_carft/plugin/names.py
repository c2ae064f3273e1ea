"""What the hooks wait for. Loaded at the start of every interpreter, as this package is."""

SWITCH = "DOMAINBED_CARFT_DISABLE"

# The modules of domainbed that get additions, see `additions`.
HOST_MODULES = (
    "domainbed.algorithms",
    "domainbed.hparams_registry",
    "domainbed.datasets",
    "domainbed.command_launchers",
)

# Our module that imports one of domainbed's at its top. Whoever imports ours first starts the
# host's import from within ours, before there is anything to add; so the host's turn comes again
# once ours is through.
OWN_MODULES = {"domainbed_carft.method.algorithms": "domainbed.algorithms"}

# Those of OWN_MODULES that are being executed just now.
RUNNING: "set[str]" = set()
