"""`python -m infra.cli`: the `headwater` command without its entry point, as the processes of a site are started."""

from infra.cli import main

main()
