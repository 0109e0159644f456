import importlib.util
import logging

import numba

from lit_grok.kernels import compiled


def test_compiling_is_said_once_and_loading_is_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "doubling.py"
    source.write_text("def twice(x):\n    return 2 * x\n\ndef thrice(x):\n    return 3 * x\n")

    def said():
        """As a new process would: its functions are new, and what is kept on the disk is there."""
        monkeypatch.setattr(compiled.announcer, "told", False)
        caplog.clear()
        spec = importlib.util.spec_from_file_location("doubling", source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with caplog.at_level(logging.INFO, "lit_grok"):
            assert compiled.compiled(module.twice)(4) == 8
            assert compiled.compiled(module.thrice)(4) == 12
        return [record.getMessage() for record in caplog.records]

    assert said() == ["compiling for this processor, half a minute at most; later runs find it done"]
    assert said() == []
