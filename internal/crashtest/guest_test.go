package crashtest

import "os"

// inGuest says whether this is the virtual machine.
func inGuest() bool { return os.Getenv("CAIRN_GUEST") == "1" }
