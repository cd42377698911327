// Binds a function on raw pointers: pointers and enumerations cross as integers, and the GIL is released meanwhile.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

namespace fastssl {

template <class T>
using Crossing = std::conditional_t<std::is_pointer_v<T>, std::uintptr_t,
                                    std::conditional_t<std::is_enum_v<T>, std::int64_t, T>>;

template <class T>
T native(Crossing<T> value) {
    if constexpr (std::is_pointer_v<T>)
        return reinterpret_cast<T>(value);
    else
        return static_cast<T>(value);
}

// `choose` returns the function to call, and is asked anew at every call.
template <class R, class... A>
void bind(pybind11::module_& module, const char* name, R (*(*choose)())(A...)) {
    module.def(name, [choose](Crossing<A>... arguments) {
        const pybind11::gil_scoped_release release;
        return choose()(native<A>(arguments)...);
    });
}

}  // namespace fastssl
