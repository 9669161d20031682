"""`t5refine doctor`: the stack on this machine, each known trap tried."""

from __future__ import annotations

import json

import typer

from t5refine_peft.cli import options


def doctor(as_json: options.Json = False) -> None:
    """Show versions, device, memory and disk, and try each known trap: ok, handled, or broken (then exit 1).

    Example: t5refine doctor
    """
    from dataclasses import asdict

    from t5refine_peft.doctor import examine

    found = examine()
    if as_json:
        print(json.dumps({**asdict(found), "healthy": found.healthy}, ensure_ascii=False))
    else:
        print(f"Python {found.python}, {found.system}; {found.device}")
        print(", ".join(f"{name} {number or 'not installed'}" for name, number in found.versions.items()))
        memory = f"{found.memory_bytes / 1e9:.1f} GB memory, {found.disk_free_bytes / 1e9:.1f} GB free on disk"
        gpu = f", {found.device_memory_bytes / 1e9:.1f} GB on the GPU" if found.device_memory_bytes else ""
        print(f"{memory}{gpu}; bitsandbytes: {found.bitsandbytes_backend or 'none'}")
        formats = ", ".join(f"{name} {milliseconds} ms" for name, milliseconds in found.cpu_milliseconds.items())
        print(f"native bf16: {'yes' if found.native_bf16 else 'no'} (CPU: {formats})")
        for finding in found.traps:
            print(f"{finding.status:8} {finding.trap}: {finding.detail}")
    if not found.healthy:
        raise typer.Exit(1)
