"""The command `t5refine`: each verb reads options, calls one public function and prints."""
