"""A model's code under the name that it has in its worker, for processes that the model starts afresh.

What a pool is to run is sent to its processes by name. In the worker this name is the model's module; in a
fresh interpreter importing it runs the same file. Nothing else imports it.
"""

import os as _os

__file__ = _os.environ["UNDERSTUDY_MODEL_SOURCE"]  # set by the worker for its children
with open(__file__, "rb") as _file:
    _code = compile(_file.read(), __file__, "exec", dont_inherit=True)
exec(_code)
