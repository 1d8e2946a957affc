"""How each OpenAI-compatible vendor writes the same answer; one file per vendor, OpenAI's is what the others vary."""

from tests.simulators.dialects.cerebras import Cerebras
from tests.simulators.dialects.dashscope import DashScopeCompatible
from tests.simulators.dialects.deepseek import DeepSeek
from tests.simulators.dialects.huggingface import HuggingFace
from tests.simulators.dialects.kimi import Kimi
from tests.simulators.dialects.openai import Dialect

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (Dialect(), DeepSeek(), Cerebras(), Kimi(), DashScopeCompatible(), HuggingFace())
}
