"""The table of commands: what there is, said without importing any of it."""

# name: (module:function, group in `--help`, one line)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("kvmlaunch.cli.run:up", "Run", "Start VMs; each is verified before it counts as started."),
    "down": ("kvmlaunch.cli.run:down", "Run", "Power VMs down and give back what they held."),
    "restart": ("kvmlaunch.cli.run:restart", "Run", "Power VMs down and start them again."),
    "pause": ("kvmlaunch.cli.run:pause", "Run", "Stop a VM's vCPUs."),
    "resume": ("kvmlaunch.cli.run:resume", "Run", "Let a paused VM run on."),
    "reset": ("kvmlaunch.cli.run:reset", "Run", "Press a VM's reset button."),
    "ls": ("kvmlaunch.cli.look:ls", "Look", "List VMs."),
    "status": ("kvmlaunch.cli.look:status", "Look", "Tell how VMs are."),
    "top": ("kvmlaunch.cli.top:top", "Look", "Show what the running VMs use, live."),
    "console": ("kvmlaunch.cli.attach:console", "Look", "Connect the terminal to a VM's serial port."),
    "logs": ("kvmlaunch.cli.attach:logs", "Look", "Show what a guest, or its QEMU, has printed."),
    "exec": ("kvmlaunch.cli.agent:exec_", "Look", "Run a command in a guest, by its agent."),
    "guest-script": ("kvmlaunch.cli.guest:guest_script", "Look", "Print a script that tunes a guest from within."),
    "monitor": ("kvmlaunch.cli.look:monitor", "Look", "Send one QMP command."),
    "print-cmd": ("kvmlaunch.cli.build:print_cmd", "Compile", "Print the QEMU command line that `up` runs."),
    "explain": (
        "kvmlaunch.cli.build:explain",
        "Compile",
        "Tell every decision with its reason, or what a key or code means.",
    ),
    "diff": ("kvmlaunch.cli.build:diff", "Compile", "Compare a running VM with what its definition would start now."),
    "validate": ("kvmlaunch.cli.define:validate", "Compile", "Check definitions, all mistakes at once."),
    "show": ("kvmlaunch.cli.define:show", "Compile", "Print a definition, or with --resolved every value of it."),
    "init": ("kvmlaunch.cli.define:init", "Compile", "Write a first definition."),
    "schema": ("kvmlaunch.cli.define:schema", "Compile", "Print the JSON Schema of definitions, for editors."),
    "clone": ("kvmlaunch.cli.clone:clone", "Disks", "Make a VM like another, on overlays or copies of its disks."),
    "disk": ("kvmlaunch.cli.disk:disk", "Disks", "Make, look at, grow, convert, check and remove disks."),
    "preflight": (
        "kvmlaunch.cli.host:preflight",
        "Host",
        "Check the host for VMs; --apply prepares it, --undo takes that back.",
    ),
    "check": ("kvmlaunch.cli.host:preflight", "Host", "The same as preflight."),
    "doctor": ("kvmlaunch.cli.doctor:doctor", "Host", "Examine this host for VMs: what is wrong, and what mends it."),
    "tune": ("kvmlaunch.cli.tune:tune", "Host", "Plan, make, verify and take back the host's settings for its VMs."),
    "facts": ("kvmlaunch.cli.host:facts", "Host", "Show what is known of this host, or save it."),
    "completion": ("kvmlaunch.cli.self:completion", "Self", "Print the completion script of a shell."),
    "version": ("kvmlaunch.cli.self:version", "Self", "Print the version."),
}


# What people type who come from elsewhere.
SYNONYMS = {
    "stop": "down",
    "shutdown": "down",
    "poweroff": "down",
    "destroy": "down --force",
    "kill": "down --force",
    "start": "up",
    "run": "up",
    "boot": "up",
    "list": "ls",
    "ps": "ls",
    "attach": "console",
}
