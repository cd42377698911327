// fastssl._cpu: the C++ kernels, on raw addresses; fastssl.ops checks what it passes.
#include "../cpu/ema_update.h"
#include "../cpu/isa.h"
#include "../cpu/nt_xent.h"
#include "../cpu/random_masking.h"
#include "../cpu/restore_patches.h"
#include "../cpu/take_patches.h"
#include "bind.h"

namespace py = pybind11;
using namespace fastssl;

PYBIND11_MODULE(_cpu, m) {
    m.def("isa", [] { return isa_name(current_isa()); });
    m.def("supported_isa", [] { return isa_name(supported_isa()); });
    m.def("set_isa", [](const std::string& name) {
        for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
            if (name == isa_name(isa)) return set_isa(isa);
        throw std::invalid_argument("unknown instruction set '" + name + "': choose baseline, avx2 or avx512");
    });

    bind(m, "ema_update", +[] { return FASTSSL_SELECT(ema_update); });
    bind(m, "nt_xent_backward", +[] { return FASTSSL_SELECT(nt_xent_backward); });
    bind(m, "nt_xent_forward", +[] { return FASTSSL_SELECT(nt_xent_forward); });
    bind(m, "random_masking", +[] { return FASTSSL_SELECT(random_masking); });
    bind(m, "restore_patches_backward", +[] { return FASTSSL_SELECT(restore_patches_backward); });
    bind(m, "restore_patches_forward", +[] { return FASTSSL_SELECT(restore_patches_forward); });
    bind(m, "take_patches_backward", +[] { return FASTSSL_SELECT(take_patches_backward); });
    bind(m, "take_patches_forward", +[] { return FASTSSL_SELECT(take_patches_forward); });
}
