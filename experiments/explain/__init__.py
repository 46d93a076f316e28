"""Why a policy is as it is, in words and numbers; and how two policies differ."""
