"""The commands of ``trimtab``, one file per thing that people come for."""
